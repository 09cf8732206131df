import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { loadConfig } from '../../../../src/config/load.ts';
import { silentLogger } from '../../../../src/logging/logger.ts';
import type { BridgeContext } from '../../../../src/runs/context.ts';
import type { RunHandle } from '../../../../src/runs/handle.ts';
import { localLauncher } from '../../../../src/runs/launchers/local.ts';
import { slurmFiles, submitRun } from '../../../../src/runs/launchers/slurm.ts';
import { thisOwner } from '../../../../src/runs/owner.ts';
import { type RunRecord, writeRecord } from '../../../../src/runs/record.ts';

let folder: string;
let runDir: string;
const notices: string[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-slurm-'));
  runDir = join(folder, 'runs', 'one');
  notices.length = 0;
});
afterEach(() => rmSync(folder, { recursive: true }));

/** A command that prints what a file says and writes down how it was called. */
function fake(name: string, body: string): void {
  writeFileSync(join(folder, name), `#!/bin/sh\necho "${name} $@" >> ${join(folder, 'calls')}\n${body}\n`);
  chmodSync(join(folder, name), 0o755);
}

const calls = (): string => readFileSync(join(folder, 'calls'), 'utf8');

/** What squeue says. */
const queue = (state: string): void => writeFileSync(join(folder, 'state'), `${state}\n`);

async function submitted(): Promise<RunHandle> {
  const context: BridgeContext = {
    cwd: folder,
    // Nothing but the fakes, also where there is a real Slurm.
    env: { PATH: folder },
    runsDir: join(folder, 'runs'),
    logger: silentLogger,
    options: {},
    launch: localLauncher(),
    findPython: () => Promise.reject(new Error('not needed')),
    owned: new Set(),
    notice: text => notices.push(text),
    commandLine: [],
  };
  const { config } = await loadConfig('digits-rcm', { cwd: folder, env: {} });
  return submitRun(context, { id: 'one', runDir, job: 'distill', config }, { slurm: ['partition=gpu'] });
}

function record(changes: Partial<RunRecord>): void {
  const now = new Date().toISOString();
  mkdirSync(runDir, { recursive: true });
  writeRecord(runDir, {
    id: 'one',
    job: 'distill',
    state: 'running',
    attempt: 1,
    owner: thisOwner(),
    heartbeat: now,
    times: { created: now, started: now, ended: null },
    progress: { step: 3, steps: 9, studentUpdates: 0, criticUpdates: 0 },
    exitCode: null,
    error: null,
    smoke: false,
    ...changes,
  });
}

it('follows a run through the turns of its job', async () => {
  fake('sbatch', 'echo "77;cluster"');
  fake('squeue', `read line < ${join(folder, 'state')}; echo "$line"`);
  queue('PENDING|Priority');
  const run = await submitted();
  expect(run.state).toBe('starting');
  const seen: string[] = [];
  const events = (async () => {
    for await (const event of run) seen.push(event.type === 'end' ? `end ${event.state} ${event.attempt}` : event.type);
  })();
  await until(() => notices.includes('Job 77: PENDING (Priority)'));
  record({ state: 'stopped', exitCode: 7 });
  await until(() => seen.length > 0);
  record({ state: 'succeeded', attempt: 2, exitCode: 0 });
  await events;
  expect(seen).toEqual(['progress', 'progress', 'end succeeded 2']);
  expect(run.state).toBe('succeeded');
  expect(calls()).toContain(`sbatch --parsable ${slurmFiles(runDir).script}`);
  expect(readFileSync(slurmFiles(runDir).script, 'utf8')).toContain('#SBATCH --partition=gpu');
});

it('tells the words of a job that ended before its run began', async () => {
  fake('sbatch', 'echo 77');
  fake('squeue', 'echo "FAILED|NonZeroExitCode"');
  const run = await submitted();
  writeFileSync(slurmFiles(runDir).log, 'E_GPU: no GPU\nTrain on the CPU\n');
  await expect(run.result()).rejects.toMatchObject({
    code: 'E_SLURM',
    message: 'Job 77 ended as FAILED before its run began. It printed: E_GPU: no GPU Train on the CPU',
  });
});

it('cancels a job that waits, and asks one that runs to stop', async () => {
  fake('sbatch', 'echo 77');
  fake('scancel', 'exit 0');
  fake('squeue', 'echo "CANCELLED|None"');
  record({ state: 'stopped', exitCode: 7 });
  const run = await submitted();
  await expect(run.cancel()).rejects.toMatchObject({ message: expect.stringContaining('ended as CANCELLED') });
  expect(calls()).toMatch(/scancel --state=PENDING 77\nscancel --batch --signal=TERM 77/);
});

it('says where there is no Slurm, and what sbatch says', async () => {
  await expect(submitted()).rejects.toMatchObject({ code: 'E_SLURM', message: 'There is no sbatch on this machine.' });
  fake('sbatch', 'echo "sbatch: error: invalid partition" >&2; exit 1');
  await expect(submitted()).rejects.toMatchObject({
    message: 'sbatch did not take the job: sbatch: error: invalid partition.',
  });
});

async function until(done: () => boolean): Promise<void> {
  for (let tries = 0; tries < 200 && !done(); tries += 1) await new Promise(wake => setTimeout(wake, 20));
  expect(done()).toBe(true);
}
