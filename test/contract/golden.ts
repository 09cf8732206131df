import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pack, packTensors } from '../../src/protocol/index.ts';
import { fixtures } from '../python.ts';

export type Group = 'controlToNode' | 'controlToPython' | 'events' | 'blobs';

const special: Readonly<Record<string, number>> = {
  NaN: Number.NaN,
  Infinity: Number.POSITIVE_INFINITY,
  '-Infinity': Number.NEGATIVE_INFINITY,
  '-0': -0,
};

/** One example body of every message type; JSON has no NaN, so the strings NaN, Infinity, -Infinity, -0 stand for them. */
export const examples = JSON.parse(readFileSync(join(fixtures, 'golden', 'examples.json'), 'utf8'), (_, value) =>
  typeof value === 'string' && value in special ? special[value] : value,
) as Readonly<Record<Group, Readonly<Record<string, unknown>>>>;

export const allExamples = Object.entries(examples).flatMap(([group, types]) =>
  Object.entries(types).map(([type, body]) => ({ group: group as Group, type, body })),
);

/** Pixels of the sample: u8 [1, 2, 2, 2, 1]. */
export const pixels = {
  name: 'pixels',
  dtype: 'u8',
  shape: [1, 2, 2, 2, 1],
  bytes: Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 255),
} as const;

/** The frames of an example as Node writes them. */
export function exampleFrames(group: Group, type: string, body: unknown): Uint8Array[] {
  const { headers, frames } = packTensors(group === 'blobs' ? [pixels] : []);
  const optional = {
    ...(group === 'controlToPython' && type !== 'welcome' ? { id: '7' } : {}),
    ...(type === 'ok' || type === 'error' ? { re: '7' } : {}),
    ...(group === 'events' || group === 'blobs' ? { run: 'run-1' } : {}),
    ...(group === 'events' ? { seq: 41 } : {}),
    ...(headers.length > 0 ? { x: headers } : {}),
  };
  return [pack({ v: 1, t: type, ts: 1763836621.25, b: body, ...optional }), ...frames];
}

/** File of the envelope written by one side. */
export const goldenFile = (side: 'node' | 'python', group: Group, type: string): string =>
  join(fixtures, 'golden', side, `${group}.${type}.msgpack`);
