/** `resume`: goes on with a run from its newest checkpoint, as a new attempt; with a step or settings see branch-run.ts. */
import fs from 'node:fs';
import { join } from 'node:path';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import { distillationPlan, pretrainingPlan, smokePlan } from '../evaluation/plan.ts';
import { csvName } from '../logging/csv-sink.ts';
import { type Checkpoint, findCheckpoint } from './checkpoints.ts';
import { readStoredConfig } from './config-file.ts';
import { anySignal, type BridgeContext, cacheDir, type Interpreter, neededPackages } from './context.ts';
import { environmentName } from './environment.ts';
import { writeFileAtomic } from './files.ts';
import type { RunHandle } from './handle.ts';
import { clearInbox } from './inbox.ts';
import { journalName, metricsName } from './journal.ts';
import { type Placement, placementOf } from './launchers/placement.ts';
import { lockHolder, takeLock } from './lock.ts';
import type { ResumeOptions } from './options.ts';
import { own } from './own.ts';
import { isAlive, thisOwner } from './owner.ts';
import { type RunRecord, readRecord, recordName, writeRecord } from './record.ts';
import { openRemoteRun } from './remote-run.ts';
import { findRun } from './store.ts';

/** An owner that has just ended its run needs a moment to let go of it. */
const lockPatienceMs = 5_000;

/**
 * Goes on with a run, or starts a child of it with `fromStep` or `set`. One that has reached its total is only opened: nothing is left to do.
 * @throws E_RUN_NOT_FOUND, E_RUN_BUSY, E_CHECKPOINT_MISSING, E_CHECKPOINT_CORRUPT, E_TORCH_DRIFT, E_PYTHON_*
 */
export async function resumeRun(context: BridgeContext, name: string, options: ResumeOptions): Promise<RunHandle> {
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  const found = findRun(context.runsDir, name, context.cwd);
  const { branchRun, isBranch } = await import('./branch-run.ts');
  if (isBranch(options)) return branchRun(context, found, options);
  const { dir: runDir, record: seen } = found;
  if (seen.state === 'succeeded') {
    context.notice(
      `Run ${seen.id} has already reached its total of ${seen.progress.steps} steps; nothing is left to do.`,
    );
    return openRemoteRun(runDir, { signal, wasComplete: true });
  }
  const config = readStoredConfig(runDir);
  const placement = placementOf(config.compute, options, context.env);
  refuseSlurm(
    placement,
    seen.id,
    'Submit its script again with sbatch (docs/launchers.md), or use distill with --run-dir and --if-exists resume.',
  );
  if (placement.launcher === 'torchrun' && placement.node > 0) {
    const { joinRun } = await import('./launchers/join-run.ts');
    return joinRun(context, { ...options, job: seen.job, config, placement });
  }
  refuseLiving(runDir, seen);
  const python = (): Promise<Interpreter> => context.findPython(signal, neededPackages(config));
  if (options.detached) return resumeDetached(context, runDir, options, await python());
  const checkpoint = await checkpointFor(context, runDir, seen);
  const interpreter = await python();
  if (checkpoint && !options.allowDrift) refuseDrift(checkpoint, interpreter);
  throwIfAborted(signal);

  const lock = await takeLock(runDir, lockPatienceMs);
  const restore = remember(runDir);
  const latest = readRecord(runDir) ?? seen;
  const record = nextAttempt(latest, checkpoint);
  try {
    clearInbox(runDir);
    writeRecord(runDir, record);
  } catch (error) {
    lock.release();
    throw error;
  }
  const whole = record.job === 'distill' ? distillationPlan(config) : pretrainingPlan(config);
  const start = {
    job: record.job,
    config: config as unknown as Record<string, unknown>,
    runId: record.id,
    runDir,
    attempt: record.attempt,
    resumeFrom: checkpoint?.path ?? null,
    allowDrift: options.allowDrift ?? false,
    cacheDir: cacheDir(context.env),
    plan: record.smoke ? smokePlan(whole) : whole,
    smoke: record.smoke,
  };
  const refused = async (error: RcmBridgeError): Promise<never> => {
    restore();
    throw error;
  };
  return own(context, { runDir, record, lock, start, config, python: interpreter, placement, options, refused });
}

/** A job that is submitted runs `distill`, which knows of no checkpoint but those in the run's own folder. @throws E_USAGE */
export function refuseSlurm({ launcher }: Placement, id: string, hint: string): void {
  if (launcher !== 'slurm') return;
  throw new RcmBridgeError('E_USAGE', `Run ${id} is started through Slurm (compute.launcher).`, { hint });
}

/** Only Python is looked for before, because that may ask for consent; the owner checks the rest. */
async function resumeDetached(
  context: BridgeContext,
  runDir: string,
  options: ResumeOptions,
  python: Interpreter,
): Promise<RunHandle> {
  const { allowDrift = false, rendezvous } = options;
  const { startDetached } = await import('./detached/start-detached.ts');
  const task = {
    kind: 'resume',
    allowDrift,
    ...(rendezvous === undefined ? {} : { rendezvous, nodeRank: 0 }),
  } as const;
  return startDetached(context, { task, runDir, python, options });
}

function refuseLiving(runDir: string, seen: RunRecord): void {
  const holder = lockHolder(runDir);
  const isLeaving = seen.state === 'stopped' || seen.state === 'failed';
  if (isLeaving || !holder || !isAlive(holder, seen.heartbeat)) return;
  throw new RcmBridgeError(
    'E_RUN_BUSY',
    `Run ${seen.id} is ${seen.state}: process ${holder.pid} on ${holder.host} owns it.`,
    {
      hint: `Stop it first: rcm-bridge runs cancel ${seen.id}`,
      details: { runDir, owner: { ...holder } },
    },
  );
}

/** A run that ended before its first checkpoint starts from the beginning, in the same folder. */
async function checkpointFor(context: BridgeContext, runDir: string, seen: RunRecord): Promise<Checkpoint | undefined> {
  try {
    const found = await findCheckpoint(runDir);
    if (found.step < seen.progress.step)
      context.logger.info({ step: found.step, reached: seen.progress.step }, 'going back to the newest checkpoint');
    return found;
  } catch (error) {
    if ((error as RcmBridgeError).code !== 'E_CHECKPOINT_MISSING') throw error;
    context.notice(`Run ${seen.id} has no checkpoint yet: it starts again at step 0.`);
    return undefined;
  }
}

/** Another torch computes other bits. The sidecar compares builds too (2.11.0+cpu); the probe may not know them. */
export function refuseDrift({ manifest }: Checkpoint, python: Interpreter): void {
  const now = python.packages.torch;
  if (typeof manifest.torch !== 'string' || typeof now !== 'string' || release(manifest.torch) === release(now)) return;
  throw new RcmBridgeError(
    'E_TORCH_DRIFT',
    `The checkpoint was made with torch ${manifest.torch}; this Python has ${now}.`,
    {
      hint: 'Resume with the first one, or add --allow-drift: the result will differ a little.',
      details: { checkpoint: manifest.torch, found: now },
    },
  );
}

const release = (version: string): string | undefined => version.split('+')[0];

function nextAttempt(last: RunRecord, checkpoint: Checkpoint | undefined): RunRecord {
  const now = new Date().toISOString();
  const step = checkpoint?.step ?? 0;
  const back = step < last.progress.step || checkpoint === undefined;
  return {
    ...last,
    state: 'starting',
    attempt: last.attempt + 1,
    owner: thisOwner(),
    heartbeat: now,
    times: { ...last.times, started: now, ended: null },
    // The sidecar reports the true counters of the checkpoint with its first progress.
    progress: back ? { ...last.progress, step, studentUpdates: 0, criticUpdates: 0 } : last.progress,
    exitCode: null,
    error: null,
  };
}

/** Returns a function that puts the files of a run back: a refused resume leaves the run as it was. */
function remember(runDir: string): () => void {
  const whole = [recordName, environmentName].map(name => ({
    path: join(runDir, name),
    content: contentOf(join(runDir, name)),
  }));
  const growing = [journalName, metricsName, csvName].map(name => {
    const path = join(runDir, name);
    return { path, size: fs.statSync(path, { throwIfNoEntry: false })?.size };
  });
  return () => {
    for (const { path, content } of whole) if (content) writeFileAtomic(path, content);
    for (const { path, size } of growing) if (size !== undefined) fs.truncateSync(path, size);
  };
}

function contentOf(path: string): Buffer | undefined {
  try {
    return fs.readFileSync(path);
  } catch {
    return undefined;
  }
}
