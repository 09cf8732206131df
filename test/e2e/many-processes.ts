/** A run on two processes, killed at a step: for the short and the long tests. */
import type { ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { listCheckpoints } from '../../src/runs/checkpoints.ts';
import { type CliResult, quickRun, runCli } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { readJson } from '../run-files.ts';

export type Victim = 'rank' | 'sidecar' | 'node';

export const twoProcesses: readonly string[] = [
  'distill',
  '--gpus',
  '2',
  ...quickRun(10),
  '--set',
  'compute.device=cpu',
  '--set',
  'checkpoints.everySteps=4',
];

/** What was killed, and what there was then. */
export interface KilledRun extends CliResult {
  /** Every process of the run, the victim included. */
  readonly pids: readonly number[];
}

export async function killedRun(cwd: string, runsDir: string, victim: Victim, step: number): Promise<KilledRun> {
  const pids: number[] = [];
  const words = [...twoProcesses, '--runs-dir', runsDir, '--format', 'ndjson'];
  const result = await runCli(words, {
    cwd,
    timeoutMs: 120_000,
    onSpawn: child => killAtStep(child, victim, step, pids),
  });
  return { ...result, pids };
}

/** Thousands of steps, its weights shared by both processes. */
export const longRun: readonly string[] = [
  ...['distill', '--gpus', '2', ...quickRun(5_000), '--set', 'compute.device=cpu'],
  ...['--set', 'compute.parallel.shard=2', '--set', 'checkpoints.everySteps=2'],
];

export interface SignalledRun extends KilledRun {
  /** From the signal to the end. */
  readonly seconds: number;
}

export type Send = (node: ChildProcess, pids: readonly number[]) => void;

/** To all processes as a scheduler does, Node last: the others have it by then for sure. */
export const everybody =
  (signal: NodeJS.Signals): Send =>
  (_node, pids) => {
    for (const pid of [...pids].reverse()) process.kill(pid, signal);
  };

/** Trains some steps in `cwd`/runs and is signalled then. */
export async function signalledRun(cwd: string, words: readonly string[], send: Send): Promise<SignalledRun> {
  let pids: readonly number[] = [];
  let sentMs = 0;
  const result = await runCli([...words, '--runs-dir', 'runs', '--format', 'ndjson', '--grace', '60s'], {
    cwd,
    timeoutMs: 150_000,
    onSpawn: child => {
      let seen = 0;
      child.stdout?.on('data', chunk => {
        seen += String(chunk).split('"type":"metric"').length - 1;
        if (sentMs > 0 || seen < 5) return;
        sentMs = performance.now();
        pids = processesOf(child.pid ?? 0).all;
        send(child, pids);
      });
    },
  });
  return { ...result, pids, seconds: (performance.now() - sentMs) / 1000 };
}

/** The signal ended all processes within a minute, and the last checkpoint is of the last step. */
export function expectStopped(runDir: string, result: SignalledRun, attempt: number): void {
  expect(result.code, result.stderr).toBe(7);
  expect(result.seconds).toBeLessThan(60);
  expect(result.pids.length).toBeGreaterThanOrEqual(4);
  expect(result.pids.filter(isAlive)).toEqual([]);
  const progress = { step: checkpointSteps(runDir).at(-1) };
  expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'stopped', exitCode: 7, attempt, progress });
}

export const checkpointSteps = (runDir: string): readonly number[] => listCheckpoints(runDir).map(({ step }) => step);

export const isAlive = (pid: number): boolean => {
  if (!existsSync(join('/proc', String(pid)))) return false;
  return !/^State:\s+Z/m.test(readFileSync(join('/proc', String(pid), 'status'), 'utf8'));
};

function killAtStep(child: ChildProcess, victim: Victim, step: number, pids: number[]): void {
  let text = '';
  child.stdout?.on('data', chunk => {
    text += String(chunk);
    const lines = text.split('\n').filter(line => line.includes('"type":"metric"'));
    if (pids.length > 0 || !lines.some(line => Number(/"step":(\d+)/.exec(line)?.[1]) >= step)) return;
    const { node, sidecar, ranks, all } = processesOf(child.pid ?? 0);
    pids.push(...all);
    const rank = ranks[0] ?? 0;
    process.kill({ rank, sidecar, node }[victim], 'SIGKILL');
  });
}

/** The processes of a run by what they are; `all` holds the watcher of the process group, too. */
export function processesOf(node: number): { node: number; sidecar: number; ranks: number[]; all: number[] } {
  const sidecar = childrenOf(node)[0] ?? 0;
  const below = childrenOf(sidecar);
  const ranks = below.filter(pid => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('--rank'));
  return { node, sidecar, ranks, all: [node, sidecar, ...below] };
}
