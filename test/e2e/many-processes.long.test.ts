import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { listCheckpoints } from '../../src/runs/checkpoints.ts';
import { cliEnvironment, cliFile, quickRun, runCli, temporaryFolder } from '../cli.ts';
import { finalWeights, metricsByStep, onlyRun, readJson } from '../run-files.ts';
import { isAlive, killedRun, processesOf, twoProcesses, type Victim } from './many-processes.ts';

/** How often a run is killed before it may end. */
const kills = Number(process.env.RCM_TEST_KILLS ?? 50);
const totalMs = (count: number): number => 120_000 * (count + 2);

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

const slow = (words: readonly string[]): ReturnType<typeof runCli> =>
  runCli(words, { cwd: folder.path, timeoutMs: 240_000 });

describe('a run on two processes', () => {
  it('finishes bit for bit as if nothing had been killed: a rank, the sidecar, Node', async () => {
    const done = await slow([...twoProcesses, '--runs-dir', 'reference']);
    expect(done.code, done.stderr).toBe(0);
    const reference = onlyRun(join(folder.path, 'reference'));
    for (const victim of ['rank', 'sidecar', 'node'] as const satisfies readonly Victim[]) {
      const killed = await killedRun(folder.path, victim, victim, 6);
      expect(killed.code, killed.stderr).not.toBe(0);
      await vanish(killed.pids);
      const resumed = await slow(['resume', 'last', '--runs-dir', victim]);
      expect(resumed.code, resumed.stderr).toBe(0);
      const runDir = onlyRun(join(folder.path, victim));
      expect(finalWeights(runDir)).toEqual(finalWeights(reference));
      expect(metricsByStep(runDir)).toEqual(metricsByStep(reference));
    }
  }, 900_000);

  it('prints the stacks and last collectives of all processes when one stands still', async () => {
    let stopped = false;
    const result = await runCli(
      [...twoProcesses, '--set', 'schedule.steps=2000', '--runs-dir', 'hang', '--format', 'ndjson'],
      {
        cwd: folder.path,
        timeoutMs: 240_000,
        onSpawn: child =>
          child.stdout?.on('data', chunk => {
            if (stopped || !/"type":"metric".*"step":5,/.test(String(chunk))) return;
            stopped = true;
            process.kill(processesOf(child.pid ?? 0).ranks[0] ?? 0, 'SIGSTOP');
          }),
      },
    );
    expect(stopped).toBe(true);
    expect(result.code, result.stderr).toBe(4);
    const runDir = onlyRun(join(folder.path, 'hang'));
    expect(readJson(join(runDir, 'run.json'))).toMatchObject({ error: { code: 'E_SIDECAR_HANG' } });
    const diagnostics = readdirSync(join(runDir, 'diagnostics')).sort();
    const recorders = [0, 1].map(rank => `flight-recorder-attempt-1-rank-${rank}-gloo.json`);
    const dump = diagnostics.at(-1) ?? '';
    expect(diagnostics).toEqual([...recorders, dump]);
    const enqueued = recorders.map(name => lastOfTraining(readJson(join(runDir, 'diagnostics', name))));
    // Either may be ahead: the stopped rank perhaps began the next collective before its threads served the last one.
    for (const count of enqueued) expect(count).toBeGreaterThan(0);
    const text = readFileSync(join(runDir, 'diagnostics', dump), 'utf8');
    const [first, second] = text.split('Rank 1 (end of logs/rank-1.log)');
    for (const stack of [first, second]) expect(stack).toMatch(/most recent call first[\s\S]*run_step/);
  }, 300_000);

  it(
    `is killed ${kills} times, a process at random, and loses nothing beyond its last checkpoint`,
    async () => {
      const steps = 4 * kills;
      const everySteps = 3;
      const words = ['distill', '--gpus', '2', ...quickRun(steps)];
      words.push('--set', 'compute.device=cpu', '--set', `checkpoints.everySteps=${everySteps}`);
      const reference = await runCli([...words, '--runs-dir', 'whole'], {
        cwd: folder.path,
        timeoutMs: totalMs(kills),
      });
      expect(reference.code, reference.stderr).toBe(0);
      const runsDir = join(folder.path, 'random');
      const owners: number[] = [];
      let saved = 0;
      for (let count = 0; count < kills; count++) {
        const again = count === 0 ? words : ['resume', 'last'];
        const { pids, ended, step } = await killSomewhere([...again, '--runs-dir', 'random']);
        if (ended) break;
        owners.push(pids[0] ?? 0);
        await vanish(pids);
        const newest = listCheckpoints(onlyRun(runsDir)).at(-1)?.step ?? 0;
        // The last checkpoint that began before the step was reported may still have been on its way to the disk.
        const begun = step - 1 - ((step - 1) % everySteps);
        expect(newest).toBeGreaterThanOrEqual(Math.max(saved, begun - everySteps));
        saved = newest;
      }
      const last = await slow(['resume', 'last', '--runs-dir', 'random']);
      expect(last.code, last.stderr).toBe(0);
      const runDir = onlyRun(runsDir);
      const whole = onlyRun(join(folder.path, 'whole'));
      expect(finalWeights(runDir)).toEqual(finalWeights(whole));
      expect(metricsByStep(runDir)).toEqual(metricsByStep(whole));
      const sockets = readdirSync(tmpdir()).filter(name => owners.some(pid => name.startsWith(`rcm-bridge-${pid}-`)));
      expect(sockets).toEqual([]);
    },
    totalMs(2 * kills),
  );
});

/** Number of the last collective that a process has asked for, over all groups but those of checkpoints. */
function lastOfTraining(recorder: Record<string, unknown>): number {
  const { entries } = recorder.collectives as { entries: { op_id: number; pg_id: number }[] };
  return Math.max(...entries.filter(({ pg_id }) => pg_id === entries.at(-1)?.pg_id).map(({ op_id }) => op_id));
}

interface Killed {
  /** Of every process, Node first. */
  readonly pids: readonly number[];
  /** It was through before that. */
  readonly ended: boolean;
  /** The last one that was reported. */
  readonly step: number;
}

/** Starts or resumes the run and kills one of its processes some steps later. */
async function killSomewhere(words: readonly string[]): Promise<Killed> {
  const child = spawn(process.execPath, [cliFile, ...words, '--format', 'ndjson'], {
    cwd: folder.path,
    env: cliEnvironment(folder.path),
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const wanted = 1 + Math.floor(Math.random() * 6);
  const pids: number[] = [];
  let step = 0;
  let seen = 0;
  child.stdout.on('data', chunk => {
    for (const [, found] of String(chunk).matchAll(/"type":"metric".*?"step":(\d+),/g)) {
      step = Number(found);
      seen += 1;
    }
    if (pids.length > 0 || seen < wanted) return;
    const { node, sidecar, ranks, all } = processesOf(child.pid ?? 0);
    pids.push(...all);
    const victims = [node, sidecar, ...ranks];
    process.kill(victims[Math.floor(Math.random() * victims.length)] as number, 'SIGKILL');
  });
  await exitOf(child);
  return { pids, ended: pids.length === 0, step };
}

const exitOf = (child: ChildProcess): Promise<void> => new Promise(resolve => child.once('close', () => resolve()));

/** Every process is gone within ten seconds. */
async function vanish(pids: readonly number[]): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (pids.some(isAlive) && Date.now() < deadline) await new Promise(wake => setTimeout(wake, 100));
  expect(pids.filter(isAlive)).toEqual([]);
}
