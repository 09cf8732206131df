import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { batchedTokens } from '../../../src/config/branches.ts';
import { loadConfig } from '../../../src/config/load.ts';
import { describeAuto, printConfig } from '../../../src/config/print.ts';

const resolved = async (source: string, set: readonly string[] = []) =>
  (await loadConfig(source, { cwd: tmpdir(), env: {}, set })).config;

describe('config print', () => {
  it.each(['digits-rcm', 'wan2.1-t2v-1.3b-480p-rcm'])('leaves no auto in %s and names the keys', async preset => {
    const { config, auto } = describeAuto(await resolved(preset));
    expect(JSON.stringify(config)).not.toContain('"auto"');
    expect(auto).toContain('teacher.branches');
    const text = printConfig(config, auto);
    expect(text).toMatch(/branches: sequential +# was auto/);
    expect(parse(text)).toEqual(config);
  });

  it("batches the teacher's passes on a GPU where a pass is small, and never on a CPU", async () => {
    const branches = async (source: string, ...set: readonly string[]) =>
      (describeAuto(await resolved(source, ['teacher.branches=auto', ...set])).config.teacher as { branches: string })
        .branches;
    // The digits: 16 tokens a sample.
    const digits = (...set: readonly string[]) => branches('digits-rcm', 'compute.device=cuda', ...set);
    expect(await branches('digits-rcm')).toBe('sequential');
    expect(await digits('schedule.batchSize=512')).toBe('batched');
    expect(await digits('schedule.batchSize=513')).toBe('sequential');
    expect(await digits('schedule.batchSize=1024', 'schedule.microBatchSize=512')).toBe('batched');
    expect(await digits('schedule.batchSize=1024', 'compute.gpusPerNode=2')).toBe('batched');
    expect(await digits('schedule.batchSize=1024', 'compute.gpusPerNode=2', 'compute.parallel.context=2')).toBe(
      'batched',
    );
    expect(await branches('wan2.1-t2v-1.3b-480p-rcm')).toBe('sequential');
  });

  it('knows the threshold the sidecar has', async () => {
    const rule = await readFile(new URL('../../../py/rcm_sidecar/training/branches.py', import.meta.url), 'utf8');
    expect(rule).toContain(`BATCHED_TOKENS = ${batchedTokens}\n`);
  });

  it('shows the micro-batch of a CPU, and a value that was given as it is', async () => {
    const free = describeAuto(await resolved('digits-rcm', ['schedule.batchSize=96']));
    expect(free.config).toMatchObject({ schedule: { microBatchSize: 96 } });
    const given = describeAuto(await resolved('digits-rcm', ['schedule.microBatchSize=64']));
    expect(given.config).toMatchObject({ schedule: { microBatchSize: 64 } });
    expect(given.auto).not.toContain('schedule.microBatchSize');
    const shared = describeAuto(
      await resolved('digits-rcm', ['compute.gpusPerNode=4', 'compute.parallel={shard: 1, context: 4}']),
    );
    expect(shared.config).toMatchObject({
      schedule: { microBatchSize: 128 },
      compute: { parallel: { contextKind: 'ring' } },
    });
    const split = describeAuto(await resolved('digits-rcm', ['compute.gpusPerNode=4']));
    expect(split.config).toMatchObject({
      schedule: { microBatchSize: 32 },
      compute: { parallel: { contextKind: 'ulysses' } },
    });
  });

  it('prints what can be read as a config again', async () => {
    const { config } = describeAuto(await resolved('digits-rcm'));
    await expect(loadConfig(config, { cwd: tmpdir(), env: {} })).resolves.toBeDefined();
  });
});
