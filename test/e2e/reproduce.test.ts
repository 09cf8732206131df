import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { cliEnvironment, runCli, temporaryFolder } from '../cli.ts';

let folder = '';
let remove: () => Promise<void>;
beforeEach(async () => {
  ({ path: folder, remove } = await temporaryFolder());
});
afterEach(() => remove());

const wan = 'wan2.1-t2v-1.3b-480p-rcm';

function reproduce(env: NodeJS.ProcessEnv, ...words: readonly string[]) {
  return spawnSync('bash', [join(packageRoot(), 'scripts', 'reproduce.sh'), ...words], {
    encoding: 'utf8',
    env: { ...cliEnvironment(folder), RUN_DIR: join(folder, 'run'), ...env },
  });
}

it('DRY_RUN says what a run takes and what is missing, and starts nothing', () => {
  const { status, stdout, stderr } = reproduce({ DRY_RUN: '1', GPUS: '2', STEPS: '100' }, wan);
  expect(status, stderr).toBe(3);
  expect(stdout).toContain('with --set compute.gpusPerNode=2 --set compute.parallel.shard=2');
  expect(stdout).toMatch(/steps +100 student, 0 critic/);
  expect(stdout).toMatch(/missing +GPUs: 2 wanted, none here/);
  expect(stdout).toMatch(/missing +teacher\.weights: .*rcm-bridge weights fetch hf:Wan-AI\/Wan2\.1-T2V-1\.3B/);
  expect(stdout).toMatch(/missing +data: .*has no shards/);
  expect(stderr).toContain('== doctor');
  expect(stderr).not.toContain('== distill');
  expect(existsSync(join(folder, 'run'))).toBe(false);
});

it('`plan` prints a document for machines and speaks to people on stderr', async () => {
  const { code, stdout, stderr } = await runCli(['plan', wan, '--json'], { cwd: folder });
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ schema: 1, name: wan, fits: true, machine: { gpu: 'h100' } });
  expect(stderr).toMatch(/^There is no GPU here/);
  const wrong = await runCli(['plan', wan, '--gpu', 'h300'], { cwd: folder });
  expect(wrong).toMatchObject({ code: 2, stdout: '' });
  expect(wrong.stderr).toContain('--gpu takes h200, h100, a100, l40s, 4090, not "h300".');
});
