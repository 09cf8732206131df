import { describe, expect, it } from 'vitest';
import { configSchema } from '../../../src/config/blocks/index.ts';
import { findParallelConflicts, processesOf, undividedBatch } from '../../../src/config/parallel.ts';

const config = (
  compute: object,
  schedule: object = {},
  model: object = { overrides: { numHeads: 2 } },
): Parameters<typeof findParallelConflicts>[0] =>
  configSchema.parse({
    version: 1,
    name: 'test',
    schedule: { batchSize: 16, ...schedule },
    model: { name: 'wan2.1-tiny', ...model },
    compute,
  });

const texts = (...parts: Parameters<typeof config>): string =>
  findParallelConflicts(config(...parts))
    .map(({ text, hint }) => `${text} ${hint}`)
    .join('\n');

describe('parallel sizes', () => {
  it.each([
    [{ gpusPerNode: 1 }, 1, 1],
    [{ gpusPerNode: 8, parallel: { shard: 4 } }, 8, 8],
    [{ gpusPerNode: 8, parallel: { shard: 2, context: 2 } }, 8, 4],
  ])('%j are %i processes, %i with samples of their own', (compute, world, data) => {
    expect(processesOf(config(compute))).toEqual({ world, data });
    expect(texts(compute)).toBe('');
  });

  it.each([
    [{ gpusPerNode: 2, parallel: { shard: 4 } }, {}, /shard 4 x context 1 = 4.*2 processes.*Start 4 processes/],
    [{ gpusPerNode: 6, parallel: { shard: 4 } }, {}, /Start 4 or 8 processes/],
    [{ gpusPerNode: 3 }, {}, /schedule\.batchSize is 16.*3 processes.*Use 15 or 18/],
    [{ gpusPerNode: 32 }, {}, /Use 32, or change/],
    [{ gpusPerNode: 2 }, { microBatchSize: 16 }, /does not divide the 8 samples of a process/],
    [{}, { microBatchSize: 5 }, /microBatchSize is 5, which does not divide schedule\.batchSize 16/],
    [
      { gpusPerNode: 4, parallel: { context: 4, contextKind: 'ulysses' } },
      {},
      /2 attention heads.*context 4 cannot.*auto or ring, or context 1 or 2/,
    ],
  ])('%j with %j is refused with the fix', (compute, schedule, message) => {
    expect(texts(compute, schedule)).toMatch(message);
  });

  it('lets ring share samples whatever the heads', () => {
    expect(texts({ gpusPerNode: 4, parallel: { context: 4, contextKind: 'ring' } })).toBe('');
  });

  it('knows of a batch that divides', () => {
    expect(undividedBatch(128, { world: 4, data: 4 })).toBeUndefined();
  });
});
