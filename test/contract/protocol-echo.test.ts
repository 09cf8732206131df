import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { decodeMessage } from '../../src/bridge/message.ts';
import { packageRoot } from '../../src/package-root.ts';
import * as protocol from '../../src/protocol/index.ts';
import { fitting, real } from './arbitrary.ts';
import { type Group, startEcho } from './python-echo.ts';

const schema = JSON.parse(readFileSync(join(packageRoot(), 'schema/protocol.v1.json'), 'utf8'));
const types = {
  controlToNode: protocol.controlToNode,
  controlToPython: protocol.controlToPython,
  events: protocol.events,
  blobs: protocol.blobs,
};
// No shrinking: it takes minutes over a process border, and the counterexamples are small already.
fc.configureGlobal({ endOnFailure: true, interruptAfterTimeLimit: 10_000 });
const echo = startEcho();
afterAll(() => echo.close());

const envelopeOf = (t: string, b: unknown, x: readonly protocol.TensorHeader[] = []): object => ({
  v: 1,
  t,
  ts: 1763836621.25,
  b,
  ...(x.length === 0 ? {} : { x }),
});

const cases = (Object.keys(types) as Group[]).flatMap(group =>
  Object.keys(types[group]).map(type => [group, type] as const),
);

describe('any message survives Node -> Python -> Node', () => {
  test.each(cases)('%s %s', async (group, type) => {
    await fc.assert(
      fc.asyncProperty(fitting(schema[group][type]), async body => {
        const frames = [protocol.pack(envelopeOf(type, body))];
        const back = decodeMessage(await echo.send(group, frames), types[group]);
        expect(back.body).toEqual(body);
      }),
      { numRuns: 40 },
    );
  });

  test('metric values of every kind, NaN and infinities included', async () => {
    // msgpackr reads the key __proto__ as __proto_, on purpose.
    const name = fc.string().filter(key => key !== '__proto__');
    const number = real.filter(value => !Number.isSafeInteger(value) || Math.abs(value) < 2 ** 31);
    await fc.assert(
      fc.asyncProperty(fc.dictionary(name, number, { noNullPrototype: true }), async values => {
        const body = { items: [{ step: 1, phase: 'student', time: 0.5, values }] };
        const back = await echo.send('events', [protocol.pack({ ...envelopeOf('metric', body), seq: 0 })]);
        expect(decodeMessage(back, protocol.events).body).toEqual(body);
      }),
    );
  });
});

describe('tensors survive the round trip', () => {
  const dtypes = protocol.dtypeName.options;
  const shapes = [[], [0], [1], [7], [3, 0, 2], [2, 3, 5], [1, 1, 1, 1, 1]];
  const bytesOf = (count: number): Uint8Array =>
    Uint8Array.from({ length: count }, (_, index) => (index * 7 + 3) % 256);

  const roundTrip = async (tensors: readonly protocol.Tensor[], frameBytes?: number): Promise<void> => {
    const { headers, frames } = protocol.packTensors(tensors, frameBytes);
    const body = { step: 0, kind: 'preview', title: '', rows: [], columns: [] };
    const sent = [protocol.pack(envelopeOf('sample', body, headers)), ...frames];
    const back = await echo.send('blobs', sent, frameBytes);
    expect(back.slice(1).map(frame => frame.byteLength)).toEqual(frames.map(frame => frame.byteLength));
    const { x = [] } = protocol.unpack(back[0]!) as { x?: protocol.TensorHeader[] };
    const received = protocol.unpackTensors(x, back.slice(1), frameBytes);
    expect(received.map(tensor => ({ ...tensor, bytes: [...tensor.bytes] }))).toEqual(
      tensors.map(tensor => ({ ...tensor, bytes: [...tensor.bytes] })),
    );
  };

  test.each(dtypes)('%s in odd shapes', async dtype => {
    for (const shape of shapes)
      await roundTrip([{ name: 'x', dtype, shape, bytes: bytesOf(protocol.tensorBytes(dtype, shape)) }]);
    await roundTrip(
      shapes.map((shape, index) => ({
        name: `x${index}`,
        dtype,
        shape,
        bytes: bytesOf(protocol.tensorBytes(dtype, shape)),
      })),
    );
  });

  test.each([7, 8, 9, 15, 16, 17])('%i bytes in frames of 8', async size => {
    const tensor = { name: 'x', dtype: 'u8', shape: [size], bytes: bytesOf(size) } as const;
    await roundTrip([tensor, tensor], 8);
  });

  test.each([-1, 0, 1])('4 MiB %i bytes', async more => {
    const size = protocol.frameBytes + more;
    const { headers, frames } = protocol.packTensors([{ name: 'x', dtype: 'u8', shape: [size], bytes: bytesOf(size) }]);
    expect(frames.map(frame => frame.byteLength)).toEqual(more > 0 ? [protocol.frameBytes, 1] : [size]);
    const body = { step: 0, kind: 'preview', title: '', rows: [], columns: [] };
    const back = await echo.send('blobs', [protocol.pack(envelopeOf('sample', body, headers)), ...frames]);
    const [tensor] = decodeMessage(back, protocol.blobs).tensors;
    expect(Buffer.compare(tensor!.bytes, bytesOf(size))).toBe(0);
  });
});

describe('Python refuses what is no message', () => {
  const body = { checkpoint: true, deadlineMs: 5 };
  test.each([
    ['another protocol', { ...envelopeOf('run.cancel', body), v: 2 }, /protocol 2 instead of 1/],
    ['an unknown type', envelopeOf('run.explode', {}), /unknown message type/],
    ['an unknown field', envelopeOf('run.cancel', { ...body, more: 1 }), /unknown field/],
    ['a missing field', envelopeOf('run.cancel', { checkpoint: true }), /deadlineMs/],
    ['a float for a count', envelopeOf('run.cancel', { ...body, deadlineMs: 1.5 }), /int/],
    ['a negative count', envelopeOf('run.cancel', { ...body, deadlineMs: -1 }), />= 0/],
    ['an unknown envelope field', { ...envelopeOf('run.cancel', body), z: 1 }, /unknown field/],
    ['frames nobody announced', envelopeOf('run.cancel', body), /1 frames came/, [new Uint8Array(3)]],
  ] as const)('%s', async (_, message, error, frames: readonly Uint8Array[] = []) => {
    await expect(echo.send('controlToPython', [protocol.pack(message), ...frames])).rejects.toThrow(error);
  });
});
