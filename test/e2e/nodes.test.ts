import { hostname } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { readJson } from '../run-files.ts';
import { isAlive } from './many-processes.ts';
import { nodeWords, onTwoNodes } from './nodes.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

it('names a machine that is gone on all others, and they go on together from the last checkpoint', async () => {
  const runDir = join(folder.path, 'runs', 'two');
  const words = [...nodeWords(6, 3), '--nodes', '2', '--run-dir', runDir];
  let pids: readonly number[] = [];
  const killed = await onTwoNodes(folder.path, words, {
    step: 4,
    act: ([, second]) => {
      pids = below(second.pid ?? 0);
      second.kill('SIGKILL');
    },
  });
  const [first, second] = killed.results;
  expect(first.code, first.stderr).toBe(4);
  expect(second.signal).toBe('SIGKILL');
  expect(killed.seconds[0]).toBeLessThan(15);
  expect(first.stderr).toMatch(new RegExp(`E_NODE_LOST: Node 1 on ${hostname()} is gone`));
  expect(pids.length).toBeGreaterThan(2);
  expect(pids.filter(isAlive)).toEqual([]);

  const resumed = await onTwoNodes(folder.path, ['resume', runDir]);
  expect(
    resumed.results.map(({ code }) => code),
    resumed.results[1].stderr,
  ).toEqual([0, 0]);
  expect(resumed.results[1].stdout).toBe('');
  expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'succeeded', attempt: 2, progress: { step: 6 } });
}, 200_000);

it.each([
  [['--nodes', '2'], 2, /E_USAGE: compute\.nodes is 2.*--rdzv HOST:PORT/s],
  [['--nodes', '2', '--rdzv', '127.0.0.1:1'], 2, /which of them this machine is.*--node-rank 0 to 1/s],
  [['--nodes', '2', '--rdzv', '127.0.0.1:1', '--node-rank', '2'], 2, /--node-rank is 2, and compute\.nodes is 2/],
  [['--nodes', '2', '--rdzv', 'nowhere', '--node-rank', '0'], 2, /--rdzv takes HOST:PORT, not "nowhere"/],
  [['--nodes', '2', '--launcher', 'local'], 2, /compute\.launcher is local, and compute\.nodes is 2/],
  [['--rdzv', '127.0.0.1:1'], 2, /compute\.nodes is 1.*--nodes N/s],
  [['--nodes', '2', '--rdzv', '192.0.2.1:29400', '--node-rank', '0'], 3, /E_RENDEZVOUS: This machine cannot listen at/],
])('refuses %j with the fix, and leaves nothing', async (words, code, message) => {
  const given = ['distill', ...quickRun(2), ...words, '--runs-dir', 'none'];
  const refused = await runCli(given, { cwd: folder.path });
  expect(refused.code, refused.stderr).toBe(code);
  expect(refused.stdout).toBe('');
  expect(refused.stderr).toMatch(message);
  expect(refused.stderr.trim().split('\n').length).toBeLessThanOrEqual(2);
});

/** A process and all below it. */
function below(pid: number): readonly number[] {
  return [pid, ...childrenOf(pid).flatMap(below)];
}
