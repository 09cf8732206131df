import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli } from '../cli.ts';
import { type Reproduction, tinyReproduction, wan } from './tiny-reproduction.ts';

let tiny: Reproduction;
beforeAll(() => {
  tiny = tinyReproduction(wan);
  writeFileSync(join(tiny.root, 'one.txt'), 'a cat\n');
}, 120_000);
afterAll(() => tiny.remove());

// The other target, kills and the comparison with diffusers are in reproduce-tiny.long.test.ts.
describe(`${wan.preset} on tiny weights`, () => {
  it('builds two samples, distils two steps, samples and reports', async () => {
    const env = { PROMPTS: join(tiny.root, 'one.txt'), SAMPLES: '2', STEPS: '2', RCM_BRIDGE_YES: '1' };
    const done = await tiny.run(env);
    expect(done.code, done.stderr).toBe(0);
    expect(readdirSync(tiny.dataDir).sort()).toEqual(['negative.embed.pt', 'set.json', 'shard_000000.tar']);
    const record = JSON.parse(readFileSync(join(tiny.runDir, 'run.json'), 'utf8'));
    expect(record).toMatchObject({ state: 'succeeded', progress: { step: 2 } });
    expect(readdirSync(join(tiny.runDir, 'samples', 'reproduce'))).toHaveLength(8);
    expect(existsSync(join(tiny.runDir, 'report', 'index.html'))).toBe(true);
  }, 200_000);
});

describe('data', () => {
  const refused = async (words: readonly string[], code: number, message: RegExp): Promise<void> => {
    const result = await runCli(['data', ...words], { cwd: tiny.root });
    expect(result, result.stderr).toMatchObject({ code, stdout: '' });
    expect(result.stderr).toMatch(message);
  };

  it('refuses what cannot become a set, before Python starts', async () => {
    writeFileSync(join(tiny.root, 'empty.txt'), '\n\n');
    const build = ['build', wan.preset, '--prompts'];
    await refused(
      [...build, 'empty.txt'],
      2,
      /^E_USAGE: .*empty\.txt holds no prompts\.\nWrite one prompt a line\.\n$/,
    );
    await refused([...build, 'nowhere.txt'], 2, /^E_USAGE: The prompts .* cannot be read/);
    await refused([...build, 'one.txt', '--num', '0'], 2, /--num takes a whole number of at least 1/);
    await refused(['build', 'digits-rcm', '--prompts', 'one.txt', '--out', 'x'], 2, /takes labels/);
    await refused([...build, 'one.txt'], 3, /^E_WEIGHTS_NOT_FOUND: .*\n.*weights fetch hf:Wan-AI/);
    await refused(['encode', 'nowhere', wan.preset], 2, /^E_USAGE: The folder .*nowhere cannot be read/);
    const onCpu = ['compute.device=cpu', 'compute.gpusPerNode=1', 'compute.parallel.shard=1', 'schedule.batchSize=1'];
    const set = [...onCpu, `model.path=${join(tiny.root, wan.model)}`].flatMap(pair => ['--set', pair]);
    await refused([...build, 'one.txt', ...set], 3, /Disk: up to .* free\. Time: .*\nE_CONSENT: Nobody agreed/);
    await refused(
      [...build, 'one.txt', '--num', '9000000', ...set],
      3,
      /E_DISK_FULL: The set takes up to \d\d\.\d TB, and/,
    );
    expect(existsSync(join(tiny.root, 'data', 'wan2.1-14b-480p-synthetic'))).toBe(false);
  }, 60_000);
});
