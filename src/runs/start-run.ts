/** `distill` and `pretrain`: from a config to a run directory with a living owner. */
import { basename, join, resolve } from 'node:path';
import { sizeWarnings } from '../config/sizes.ts';
import type { RcmConfigInput, ResolvedConfig } from '../config/types.ts';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import { distillationPlan, pretrainingPlan, smokePlan } from '../evaluation/plan.ts';
import type { EvaluationPlan } from '../protocol/messages.ts';
import { type Checkpoint, checkpointPath, shareCheckpoint } from './checkpoints.ts';
import { readStoredConfig, writeStoredConfig } from './config-file.ts';
import { anySignal, type BridgeContext, cacheDir, type Interpreter, neededPackages } from './context.ts';
import { makeDirectory, remove } from './files.ts';
import type { RunHandle } from './handle.ts';
import { checkFiles, checkHost } from './host-checks.ts';
import { inboxName } from './inbox.ts';
import { type Placement, placementOf } from './launchers/placement.ts';
import { type RunLock, takeLock } from './lock.ts';
import type { RunOptions } from './options.ts';
import { own } from './own.ts';
import { thisOwner } from './owner.ts';
import { checkPlan } from './plan-run.ts';
import { type Job, type RunParent, type RunRecord, readRecord, writeRecord } from './record.ts';
import { resumeRun } from './resume-run.ts';
import { newRunId, runIdPattern } from './run-id.ts';
import { smokeConfig } from './smoke.ts';
import { checkNewRunDir, checkRunsDir } from './store.ts';

/** Everything that can be known about a run before it is started. */
export interface PreparedRun {
  readonly job: Job;
  readonly resolved: ResolvedConfig;
  readonly plan: EvaluationPlan;
  readonly steps: number;
  readonly python: Interpreter;
  /** Absolute; undefined: one below the runs folder, named when it is made. */
  readonly runDir: string | undefined;
  readonly placement: Placement;
  /** What a child run goes on from. */
  readonly branch?: Branch;
}

export interface Branch {
  readonly parent: RunParent;
  /** The parent's; the child gets it into its own folder. */
  readonly checkpoint: Checkpoint;
  readonly allowDrift: boolean;
}

/** A new run's id and its absolute folder. */
export interface RunPlace {
  readonly id: string;
  readonly runDir: string;
}

/**
 * Checks runs folder, Python, hardware and files, in this order; creates nothing.
 * @throws E_USAGE, E_CONFIG_*, E_RUNS_DIR, E_RUN_DIR, E_RUN_EXISTS, E_PYTHON_*, E_CONSENT, E_GPU, E_WEIGHTS_NOT_FOUND,
 *   E_DATA_NOT_FOUND, E_ABORTED
 */
export async function prepareRun(
  context: BridgeContext,
  job: Job,
  resolved: ResolvedConfig,
  options: RunOptions,
): Promise<PreparedRun> {
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  const { config } = resolved;
  const placement = placementOf(config.compute, options, context.env);
  const runDir = options.runDir === undefined ? undefined : resolve(context.cwd, options.runDir);
  if (runDir === undefined) checkRunsDir(context.runsDir);
  else {
    if (options.ifExists !== 'resume') checkNewRunDir(runDir);
    checkRunsDir(runDir);
  }
  const python = await context.findPython(signal, neededPackages(config));
  if (placement.launcher === 'slurm') checkFiles(job, config, context.env);
  else {
    await checkHost(job, config, context.env);
    if (job === 'distill') await checkPlan(context, config, options.ignorePlan ?? false);
  }
  throwIfAborted(signal);
  const whole = job === 'distill' ? distillationPlan(config) : pretrainingPlan(config);
  const plan = options.smoke ? smokePlan(whole) : whole;
  return { job, resolved, plan, steps: totalSteps(job, resolved), python, runDir, placement };
}

/** @throws E_CONFIG_* */
export async function resolveConfig(
  { cwd, env }: BridgeContext,
  job: Job,
  source: string | RcmConfigInput,
  options: RunOptions,
): Promise<ResolvedConfig> {
  const { loadConfig } = await import('../config/load.ts');
  const loaded = await loadConfig(source, { cwd, env, set: settings(job, options) });
  return options.smoke ? { ...loaded, config: smokeConfig(loaded.config) } : loaded;
}

export const stepsKey = (job: Job): string => (job === 'distill' ? 'schedule.steps' : 'pretrain.steps');

export const totalSteps = (job: Job, { config }: Pick<ResolvedConfig, 'config'>): number =>
  job === 'distill' ? config.schedule.steps : config.pretrain.steps;

/** `steps`, `gpus`, `nodes`, `launcher` and `name` are keys like others; they come last, as flags do. */
function settings(
  job: Job,
  { set = [], steps, gpus, nodes, launcher, name }: RunOptions,
): readonly string[] | Readonly<Record<string, unknown>> {
  const flags = {
    [stepsKey(job)]: steps,
    'compute.gpusPerNode': gpus,
    'compute.nodes': nodes,
    'compute.launcher': launcher,
    name,
  };
  const given = Object.entries(flags).filter(([, value]) => value !== undefined);
  if (!Array.isArray(set)) return { ...set, ...Object.fromEntries(given) };
  return [...(set as readonly string[]), ...given.map(([key, value]) => `${key}=${JSON.stringify(value)}`)];
}

/** Starts a run. Resolves when its directory exists and its job has passed its checks. */
export async function startRun(
  context: BridgeContext,
  job: Job,
  source: string | RcmConfigInput,
  options: RunOptions,
): Promise<RunHandle> {
  const existing = options.runDir === undefined ? undefined : resolve(context.cwd, options.runDir);
  const resolved = await resolveConfig(context, job, source, options);
  const { config } = resolved;
  const placement = placementOf(config.compute, options, context.env);
  if (existing !== undefined && options.ifExists === 'resume' && readRecord(existing)) {
    await compareWithStored(context, existing, resolved);
    if (placement.launcher === 'slurm') {
      return launchPrepared(context, await prepareRun(context, job, resolved, options), options);
    }
    const { signal, onCreated, detached = false, rendezvous, nodeRank } = options;
    return resumeRun(context, existing, given({ detached, signal, onCreated, rendezvous, nodeRank }));
  }
  if (placement.launcher === 'torchrun' && placement.node > 0) {
    const { joinRun } = await import('./launchers/join-run.ts');
    return joinRun(context, { ...options, job, config, placement });
  }
  return launchPrepared(context, await prepareRun(context, job, resolved, options), options);
}

/** The options that are not undefined. */
const given = <Options extends object>(options: { [Key in keyof Options]: Options[Key] | undefined }): Options =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Options;

/**
 * `--if-exists resume` goes on with the config the run began with: another one is refused where it would make another
 * run, and told where it would not.
 * @throws E_CONFIG_FIXED
 */
async function compareWithStored(context: BridgeContext, runDir: string, given: ResolvedConfig): Promise<void> {
  const { configChanges } = await import('../config/changes.ts');
  const changes = configChanges(readStoredConfig(runDir), given.config);
  const fixed = changes.find(({ mayChange }) => !mayChange);
  if (fixed) {
    const { path, before, after } = fixed;
    throw new RcmBridgeError(
      'E_CONFIG_FIXED',
      `The run in ${runDir} began with ${path}=${JSON.stringify(before)}, not ${JSON.stringify(after)}.`,
      { hint: 'Give the config it began with, or another --run-dir for a new run.', details: { ...fixed, runDir } },
    );
  }
  if (changes.length === 0) return;
  const names = changes.map(({ path }) => path).join(', ');
  context.notice(`The run goes on with its own ${names}; resume --set makes a child run with other values.`);
}

/** A folder that is named like a run, such as that of a job of Slurm, has the id of its run. */
function idOf({ runDir, resolved }: PreparedRun): string {
  const name = runDir === undefined ? '' : basename(runDir);
  return runIdPattern.test(name) ? name : newRunId(resolved.config.name);
}

/** Starts a run whose checks are done, in this process or detached. */
export async function launchPrepared(
  context: BridgeContext,
  prepared: PreparedRun,
  options: Pick<RunOptions, 'smoke' | 'detached' | 'signal' | 'onCreated' | 'slurm' | 'ignorePlan'>,
): Promise<RunHandle> {
  const id = idOf(prepared);
  const runDir = prepared.runDir ?? join(context.runsDir, id);
  if (prepared.placement.launcher === 'slurm') {
    const { submitRun } = await import('./launchers/slurm.ts');
    return submitRun(context, { id, runDir, job: prepared.job, config: prepared.resolved.config }, options);
  }
  const run = options.detached
    ? await startPreparedDetached(context, prepared, { id, runDir }, options)
    : await ownPrepared(context, prepared, { id, runDir }, options);
  for (const warning of sizeWarnings(prepared.resolved.config)) context.notice(warning);
  return run;
}

async function startPreparedDetached(
  context: BridgeContext,
  prepared: PreparedRun,
  { id, runDir }: RunPlace,
  options: Pick<RunOptions, 'smoke' | 'signal' | 'onCreated'>,
): Promise<RunHandle> {
  const { startDetached } = await import('./detached/start-detached.ts');
  const task = { kind: 'start', id, prepared, smoke: options.smoke ?? false } as const;
  return startDetached(context, { task, runDir, python: prepared.python, options });
}

/** Makes the directory of a run that has been prepared, in this process or by the one that started it, and owns it. */
export async function ownPrepared(
  context: BridgeContext,
  prepared: PreparedRun,
  place: RunPlace,
  options: Pick<RunOptions, 'smoke' | 'signal' | 'onCreated'>,
): Promise<RunHandle> {
  throwIfAborted(anySignal(context.options.signal, options.signal));
  const { runDir } = place;
  const { record, lock } = await createRunDir(prepared, place, options.smoke ?? false);
  const { branch, resolved, placement } = prepared;
  const { config } = resolved;
  const start = {
    job: prepared.job,
    config: config as unknown as Record<string, unknown>,
    runId: record.id,
    runDir,
    attempt: 1,
    resumeFrom: branch ? checkpointPath(runDir, branch.checkpoint.step) : null,
    allowDrift: branch?.allowDrift ?? false,
    cacheDir: cacheDir(context.env),
    plan: prepared.plan,
    smoke: record.smoke,
  };
  const refused = async (error: RcmBridgeError): Promise<never> => {
    remove(runDir);
    throw error;
  };
  return own(context, { runDir, record, lock, start, config, python: prepared.python, placement, options, refused });
}

async function createRunDir(
  prepared: PreparedRun,
  { id, runDir }: RunPlace,
  smoke: boolean,
): Promise<{ readonly record: RunRecord; readonly lock: RunLock }> {
  const now = new Date().toISOString();
  const { branch } = prepared;
  const record: RunRecord = {
    id,
    job: prepared.job,
    state: 'starting',
    attempt: 1,
    owner: thisOwner(),
    heartbeat: now,
    times: { created: now, started: now, ended: null },
    progress: { step: branch?.parent.step ?? 0, steps: prepared.steps, studentUpdates: 0, criticUpdates: 0 },
    exitCode: null,
    error: null,
    smoke,
    ...(branch ? { parent: branch.parent } : {}),
  };
  makeDirectory(runDir);
  const lock = await takeLock(runDir);
  try {
    makeDirectory(join(runDir, inboxName));
    writeStoredConfig(runDir, prepared.resolved);
    if (branch) shareCheckpoint(branch.checkpoint, runDir);
    // run.json comes last: a folder with run.json is a run.
    writeRecord(runDir, record);
    return { record, lock };
  } catch (error) {
    lock.release();
    remove(runDir);
    throw error;
  }
}
