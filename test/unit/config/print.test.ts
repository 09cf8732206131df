import { tmpdir } from 'node:os';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
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

  it('shows the micro-batch of a CPU, and a value that was given as it is', async () => {
    const free = describeAuto(await resolved('digits-rcm', ['schedule.batchSize=96']));
    expect(free.config).toMatchObject({ schedule: { microBatchSize: 96 } });
    const given = describeAuto(await resolved('digits-rcm', ['schedule.microBatchSize=64']));
    expect(given.config).toMatchObject({ schedule: { microBatchSize: 64 } });
    expect(given.auto).not.toContain('schedule.microBatchSize');
  });

  it('prints what can be read as a config again', async () => {
    const { config } = describeAuto(await resolved('digits-rcm'));
    await expect(loadConfig(config, { cwd: tmpdir(), env: {} })).resolves.toBeDefined();
  });
});
