import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { describe, expect, test } from 'vitest';
import { decodeMessage } from '../../src/bridge/message.ts';
import * as protocol from '../../src/protocol/index.ts';
import { allExamples, exampleFrames, goldenFile, pixels } from './golden.ts';

// Written anew by RCM_TEST_WRITE=1 (both this file and test/py/border/test_golden.py); the bytes are the contract.

const { controlToNode, controlToPython, events, blobs } = protocol;
const types = { controlToNode, controlToPython, events, blobs };

describe('golden frames', () => {
  test.each(allExamples)('Node writes $group $type as ever', ({ group, type, body }) => {
    const [envelope = new Uint8Array()] = exampleFrames(group, type, body);
    const file = goldenFile('node', group, type);
    if (process.env.RCM_TEST_WRITE === '1') {
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, envelope);
    }
    expect(Buffer.from(envelope).toString('hex')).toBe(readFileSync(file).toString('hex'));
  });

  test.each(allExamples)('Node reads what Python wrote: $group $type', ({ group, type, body }) => {
    const frames = group === 'blobs' ? [pixels.bytes] : [];
    const message = decodeMessage([readFileSync(goldenFile('python', group, type)), ...frames], types[group]);
    expect(message.body).toEqual(body);
    expect(message.envelope).toMatchObject({ v: 1, t: type, ts: 1763836621.25 });
    if (group === 'events') expect(message.envelope.seq).toBe(41);
    if (group === 'blobs') expect(message.tensors).toEqual([pixels]);
  });
});
