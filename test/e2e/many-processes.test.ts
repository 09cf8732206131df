import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { onlyRun, readJson } from '../run-files.ts';
import { isAlive, killedRun } from './many-processes.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

it('names a process that was killed, ends all others, and goes on from the last checkpoint', async () => {
  const killed = await killedRun(folder.path, 'runs', 'rank', 6);
  expect(killed.code, killed.stderr).toBe(4);
  const runDir = onlyRun(join(folder.path, 'runs'));
  expect(readJson(join(runDir, 'run.json'))).toMatchObject({
    state: 'failed',
    exitCode: 4,
    error: {
      code: 'E_SIDECAR_EXIT',
      message: expect.stringContaining(`Rank 1 on ${hostname()} ended by signal SIGKILL`),
    },
  });
  expect(killed.pids.length).toBeGreaterThanOrEqual(3);
  expect(killed.pids.filter(isAlive)).toEqual([]);

  const resumed = await runCli(['resume', 'last', '--runs-dir', 'runs'], { cwd: folder.path, timeoutMs: 120_000 });
  expect(resumed.code, resumed.stderr).toBe(0);
  expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'succeeded', attempt: 2, progress: { step: 10 } });
  expect(readFileSync(join(runDir, 'logs', 'rank-1.log'), 'utf8')).toMatch(/training at step 4/);
}, 200_000);

it.each([
  [['--gpus', '3'], /schedule\.batchSize is 16.*Use 15 or 18/s],
  [['--gpus', '2', '--set', 'compute.parallel.shard=4'], /do not divide.*Start 4 processes/s],
  [
    ['--gpus', '4', '--set', 'compute.parallel={context: 4, contextKind: ulysses}'],
    /2 attention heads.*auto or ring, or context 1 or 2/s,
  ],
  [['--gpus', '2', '--set', 'schedule.microBatchSize=16'], /8 samples of a process/],
])('refuses %j before anything starts, with the fix', async (words, message) => {
  const refused = await runCli(['distill', ...quickRun(2), ...words, '--runs-dir', 'none'], { cwd: folder.path });
  expect(refused.code).toBe(2);
  expect(refused.stdout).toBe('');
  expect(refused.stderr.trim().split('\n').length).toBeLessThanOrEqual(2);
  expect(refused.stderr).toMatch(message);
});
