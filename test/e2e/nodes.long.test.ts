import { readdirSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { readJson } from '../run-files.ts';
import { nodeWords, onTwoNodes } from './nodes.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

it('computes on two machines the bits of two processes on one, also after a stop by the machine that does not lead', async () => {
  const words = nodeWords(6, 3);
  const [one, two] = ['one', 'two'].map(name => join(folder.path, name)) as [string, string];
  const whole = await runCli([...words, '--gpus', '2', '--run-dir', one], { cwd: folder.path, timeoutMs: 120_000 });
  expect(whole.code, whole.stderr).toBe(0);

  const onNodes = [...words, '--nodes', '2', '--run-dir', two];
  const stopped = await onTwoNodes(folder.path, onNodes, { step: 2, act: ([, second]) => second.kill('SIGTERM') });
  expect(
    stopped.results.map(({ code }) => code),
    stopped.results[1].stderr,
  ).toEqual([7, 7]);
  const resumed = await onTwoNodes(folder.path, [...onNodes, '--if-exists', 'resume']);
  expect(
    resumed.results.map(({ code }) => code),
    resumed.results[0].stderr,
  ).toEqual([0, 0]);
  const files = tensorFiles(one);
  expect(files.length).toBeGreaterThan(2);
  for (const file of files)
    expect(readFileSync(join(two, file)).equals(readFileSync(join(one, file))), file).toBe(true);
}, 400_000);

it('ends all machines within ten seconds when the one that leads is killed', async () => {
  const runDir = join(folder.path, 'led');
  const { results, seconds } = await onTwoNodes(
    folder.path,
    [...nodeWords(5_000, 500), '--nodes', '2', '--run-dir', runDir],
    {
      step: 4,
      act: ([first]) => first.kill('SIGKILL'),
    },
  );
  expect(results[1].code, results[1].stderr).toBe(4);
  expect(results[1].stderr).toMatch(new RegExp(`on ${hostname()} is gone|owned the run, ended`));
  expect(seconds[1]).toBeLessThan(10);
}, 200_000);

it('notices a machine that falls silent, and one that does not answer is ended when it wakes', async () => {
  const runDir = join(folder.path, 'silent');
  const { results, seconds } = await onTwoNodes(
    folder.path,
    [...nodeWords(5_000, 500), '--nodes', '2', '--run-dir', runDir],
    {
      step: 4,
      act: ([, second]) => {
        // All of machine 1 stands still, as when its power or its network is gone.
        const pids = below(second.pid ?? 0);
        for (const pid of pids) process.kill(pid, 'SIGSTOP');
        setTimeout(() => {
          for (const pid of pids.reverse()) process.kill(pid, 'SIGCONT');
        }, 15_000);
      },
    },
  );
  expect(results[0].code, results[0].stderr).toBe(4);
  expect(results[0].stderr).toMatch(/E_NODE_LOST: Node 1 on .* is gone/);
  expect(seconds[0]).toBeLessThan(15);
  expect(results[1].code, results[1].stderr).toBe(4);
  expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'failed', error: { code: 'E_NODE_LOST' } });
}, 200_000);

const tensorFiles = (runDir: string): readonly string[] =>
  readdirSync(join(runDir, 'export'), { recursive: true, encoding: 'utf8' })
    .filter(name => name.endsWith('.safetensors'))
    .map(name => join('export', name));

function below(pid: number): number[] {
  return [pid, ...childrenOf(pid).flatMap(below)];
}
