/** A run as a job of Slurm: submitted here, owned by a process of the job, followed through its folder and the queue. */
import fs from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { RcmConfig } from '../../config/types.ts';
import { RcmBridgeError, throwIfAborted } from '../../errors/index.ts';
import { packageRoot } from '../../package-root.ts';
import { gpuNamed } from '../../plan/machines.ts';
import { makePlan } from '../../plan/plan.ts';
import { anySignal, type BridgeContext } from '../context.ts';
import type { EndEvent, RunEvent } from '../events.ts';
import { makeDirectory, writeFileAtomic } from '../files.ts';
import type { RunHandle } from '../handle.ts';
import type { RunOptions } from '../options.ts';
import { type EndState, type Job, type RunRecord, readSettledRecord } from '../record.ts';
import { openRemoteRun } from '../remote-run.ts';
import { cancel, isWaitingOrRunning, jobState, submit } from './slurm-commands.ts';
import { checkTimeLimit, parseDirectives, slurmScript } from './slurm-script.ts';

const queuePollMs = 5_000;
const folderPollMs = 500;
const pollsPerLook = queuePollMs / folderPollMs;
/** Between the end of a run and the end of its job lies the script's own end. */
const settleMs = 30_000;

/** What is written for a job, beside the folder of its run. */
export interface SlurmFiles {
  readonly script: string;
  readonly config: string;
  readonly log: string;
}

export interface SlurmSubmission {
  readonly job: Job;
  readonly config: RcmConfig;
  /** Absolute. */
  readonly runDir: string;
  readonly id: string;
}

export function slurmFiles(runDir: string): SlurmFiles {
  const stem = join(dirname(runDir), '.slurm', basename(runDir));
  return { script: `${stem}.sh`, config: `${stem}.json`, log: `${stem}.log` };
}

/** @throws E_USAGE, E_TIME_LIMIT */
export function scriptOf(
  context: Pick<BridgeContext, 'cwd' | 'options'>,
  { job, config, runDir }: Omit<SlurmSubmission, 'id'>,
  options: Pick<RunOptions, 'slurm' | 'smoke' | 'ignorePlan'>,
): string {
  const { script, config: configFile, log } = slurmFiles(runDir);
  const directives = parseDirectives(options.slurm ?? []);
  checkTimeLimit(directives, longestStepSeconds(job, config));
  const { python } = context.options;
  const command = [
    ...[process.execPath, join(packageRoot(), 'bin', 'rcm-bridge.js'), job, configFile],
    ...['--run-dir', runDir, '--if-exists', 'resume', '--launcher', 'auto', '--no-progress'],
    ...(python === undefined || python === 'auto' ? [] : ['--python', python]),
    ...(options.smoke ? ['--smoke'] : []),
    ...(options.ignorePlan ? ['--ignore-plan'] : []),
  ];
  const { compute, name } = config;
  return slurmScript({ name, cwd: context.cwd, logFile: log, compute, directives, command }, script);
}

/** Of the plan, for the GPU that it assumes where there is none (a login node); 0 where it knows nothing. */
function longestStepSeconds(job: Job, config: RcmConfig): number {
  const { device, gpusPerNode, nodes } = config.compute;
  if (device !== 'cuda' || job !== 'distill') return 0;
  const { time } = makePlan(config, { gpu: gpuNamed('h100'), gpusPerNode, nodes });
  return Math.max(time?.student.total ?? 0, time?.critic?.total ?? 0);
}

/**
 * Submits a run and returns a handle that follows job and run. The job goes on without this process.
 * @throws E_SLURM, E_USAGE, E_TIME_LIMIT, E_ABORTED
 */
export async function submitRun(
  context: BridgeContext,
  submission: SlurmSubmission,
  options: Pick<RunOptions, 'slurm' | 'smoke' | 'ignorePlan' | 'signal' | 'onCreated'>,
): Promise<RunHandle> {
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  const { runDir, config } = submission;
  const text = scriptOf(context, submission, options);
  const files = slurmFiles(runDir);
  const undo = undoing(files);
  makeDirectory(dirname(files.script));
  writeFileAtomic(files.config, `${JSON.stringify(config, undefined, 2)}\n`);
  writeFileAtomic(files.script, text);
  const before = readSettledRecord(runDir);
  const jobId = await submit(files.script, context.env).catch(error => {
    undo();
    throw error;
  });
  context.notice(`Job ${jobId} is submitted; its script is ${files.script}, what it prints ${files.log}.`);
  const handle = followJob({
    ...submission,
    jobId,
    before,
    log: files.log,
    env: context.env,
    notice: context.notice,
    signal,
  });
  options.onCreated?.(handle);
  return handle;
}

/** A refused command leaves nothing: removes what it wrote and the folders it made, never those of an earlier job. */
function undoing({ script, config }: SlurmFiles): () => void {
  const isNew = (path: string): boolean => !fs.existsSync(path);
  const files = [script, config].filter(isNew);
  const folder = dirname(script);
  const folders = [folder, dirname(folder)].filter(isNew);
  return () => {
    for (const file of files) fs.rmSync(file, { force: true });
    for (const path of folders) if (!isNew(path) && fs.readdirSync(path).length === 0) fs.rmdirSync(path);
  };
}

interface Following extends SlurmSubmission {
  readonly jobId: string;
  /** The run as it was when the job was submitted. */
  readonly before: RunRecord | undefined;
  readonly log: string;
  readonly env: NodeJS.ProcessEnv;
  readonly notice: (text: string) => void;
  readonly signal: AbortSignal | undefined;
}

function followJob(following: Following): RunHandle {
  const { id, runDir, jobId, before, env, signal } = following;
  const now = (): RunRecord | undefined => {
    const record = readSettledRecord(runDir);
    return record && record.attempt > (before?.attempt ?? 0) ? record : undefined;
  };
  const opened = async (): Promise<RunHandle> => {
    await nextTurn(following, before?.attempt ?? 0);
    return openRemoteRun(runDir, { signal });
  };
  const ended = async (): Promise<void> => {
    for await (const _ of turns(following)) {
      // Their end is what counts.
    }
  };
  return {
    id: before?.id ?? id,
    dir: runDir,
    wasComplete: false,
    node: 0,
    get state() {
      return now()?.state ?? 'starting';
    },
    [Symbol.asyncIterator]: () => turns(following),
    events: ({ types } = {}) =>
      only(turns(following), types && new Set<string>([...types, 'end'])) as AsyncGenerator<never>,
    result: async () => {
      await ended();
      return openRemoteRun(runDir).result();
    },
    cancel: async () => {
      await cancel(jobId, env);
      await ended();
      return { state: (now()?.state ?? 'stopped') as EndState };
    },
    pause: async () => (await opened()).pause(),
    continue: async () => (await opened()).continue(),
    checkpoint: async () => (await opened()).checkpoint(),
    sample: async request => (await opened()).sample(request),
    describe: async () => (await opened()).describe(),
  };
}

async function* only(
  events: AsyncGenerator<RunEvent>,
  wanted: ReadonlySet<string> | undefined,
): AsyncGenerator<RunEvent> {
  for await (const event of events) if (!wanted || wanted.has(event.type)) yield event;
}

/** The events of all turns of the job; those of a run that goes on in a new turn have one end. */
async function* turns(following: Following): AsyncGenerator<RunEvent, undefined> {
  let attempt = following.before?.attempt ?? 0;
  for (;;) {
    attempt = await nextTurn(following, attempt);
    let end: EndEvent | undefined;
    for await (const event of openRemoteRun(following.runDir, { signal: following.signal })) {
      if (event.type === 'end') end = event;
      else yield event;
    }
    if (end && (end.state === 'succeeded' || !(await goesOn(following, attempt)))) {
      yield end;
      return;
    }
  }
}

/** Number of the attempt that the run has begun since. */
function attemptAfter(attempt: number, runDir: string): number | undefined {
  const record = readSettledRecord(runDir);
  return record && record.attempt > attempt ? record.attempt : undefined;
}

/** Waits until the run has a newer attempt, and says what it waits for. @throws E_SLURM when the job ends without */
async function nextTurn({ runDir, jobId, env, log, notice, signal }: Following, attempt: number): Promise<number> {
  let shown = '';
  for (let polls = 0; ; polls += 1) {
    throwIfAborted(signal);
    const job = polls % pollsPerLook === 0 ? await jobState(jobId, env) : undefined;
    const begun = attemptAfter(attempt, runDir);
    if (begun !== undefined) return begun;
    if (polls % pollsPerLook === 0) {
      if (!job || !isWaitingOrRunning(job)) throw endedEarly(jobId, job?.state, log);
      const words = `Job ${jobId}: ${job.state}${job.reason ? ` (${job.reason})` : ''}`;
      if (words !== shown) notice(words);
      shown = words;
    }
    await sleep(folderPollMs);
  }
}

/** Whether the job goes on after its run has ended early: it waits again, or another attempt has begun. */
async function goesOn({ runDir, jobId, env, signal }: Following, attempt: number): Promise<boolean> {
  const deadline = Date.now() + settleMs;
  for (;;) {
    throwIfAborted(signal);
    if (attemptAfter(attempt, runDir) !== undefined) return true;
    const job = await jobState(jobId, env);
    if (!job || !isWaitingOrRunning(job)) return false;
    if (job.state === 'PENDING') return true;
    // The last word of a job that hangs in its script is that of its run.
    if (Date.now() > deadline) return false;
    await sleep(queuePollMs / 5);
  }
}

function endedEarly(jobId: string, state: string | undefined, log: string): RcmBridgeError {
  const last = lastLines(log);
  const how = state === undefined ? 'is gone' : `ended as ${state}`;
  return new RcmBridgeError(
    'E_SLURM',
    `Job ${jobId} ${how} before its run began.${last ? ` It printed: ${last}` : ''}`,
    {
      hint: `See ${log}, and \`scontrol show job ${jobId}\`.`,
      details: { jobId, state },
    },
  );
}

function lastLines(path: string): string {
  try {
    return fs.readFileSync(path, 'utf8').trim().split('\n').slice(-2).join(' ');
  } catch {
    return '';
  }
}
