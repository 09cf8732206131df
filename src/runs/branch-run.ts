/** `resume --from-step` and `resume --set`: a child run that goes on from a checkpoint of another run. */
import { configChanges } from '../config/changes.ts';
import type { ResolvedConfig } from '../config/types.ts';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import { distillationPlan, pretrainingPlan, smokePlan } from '../evaluation/plan.ts';
import { type Checkpoint, findCheckpoint } from './checkpoints.ts';
import { readStoredResolved } from './config-file.ts';
import { anySignal, type BridgeContext, neededPackages } from './context.ts';
import type { RunHandle } from './handle.ts';
import { checkHost } from './host-checks.ts';
import { placementOf } from './launchers/placement.ts';
import type { ResumeOptions } from './options.ts';
import type { Job } from './record.ts';
import { refuseDrift, refuseSlurm } from './resume-run.ts';
import { launchPrepared, type PreparedRun, stepsKey, totalSteps } from './start-run.ts';
import { checkRunsDir, type StoredRun } from './store.ts';

/** Whether a resume makes a child run: the run itself keeps its later checkpoints and its config. */
export const isBranch = ({ fromStep, set }: ResumeOptions): boolean =>
  fromStep !== undefined || (set !== undefined && Object.keys(set).length > 0);

/**
 * Starts a child of a run: a new run directory with the parent's checkpoint, from which it trains on. The parent, which
 * may be over or still running, is only read.
 * @throws E_CONFIG_*, E_CHECKPOINT_MISSING, E_CHECKPOINT_CORRUPT, E_TORCH_DRIFT, and what `startRun` throws
 */
export async function branchRun(
  context: BridgeContext,
  { dir, record: parent }: StoredRun,
  options: ResumeOptions,
): Promise<RunHandle> {
  const signal = anySignal(context.options.signal, options.signal);
  const resolved = await childConfig(context, dir, options.set);
  const placement = placementOf(resolved.config.compute, options, context.env);
  refuseSlurm(
    placement,
    parent.id,
    'Type the same command within a job of Slurm (sbatch, salloc), or start the child here: --set compute.launcher=auto.',
  );
  if (placement.launcher === 'torchrun' && placement.node > 0) {
    const { joinRun } = await import('./launchers/join-run.ts');
    return joinRun(context, { ...options, job: parent.job, config: resolved.config, placement });
  }
  const checkpoint = await findCheckpoint(dir, options.fromStep);
  const steps = totalSteps(parent.job, resolved);
  refusePast(parent.job, steps, checkpoint);
  checkRunsDir(context.runsDir);
  const python = await context.findPython(signal, neededPackages(resolved.config));
  if (!options.allowDrift) refuseDrift(checkpoint, python);
  await checkHost(parent.job, resolved.config, context.env);
  throwIfAborted(signal);
  const whole = parent.job === 'distill' ? distillationPlan(resolved.config) : pretrainingPlan(resolved.config);
  const prepared: PreparedRun = {
    job: parent.job,
    resolved,
    plan: parent.smoke ? smokePlan(whole) : whole,
    steps,
    python,
    runDir: undefined,
    placement,
    branch: {
      parent: { id: parent.id, step: checkpoint.step },
      checkpoint,
      allowDrift: options.allowDrift ?? false,
    },
  };
  const run = await launchPrepared(context, prepared, { ...options, smoke: parent.smoke });
  context.notice(`A child of run ${parent.id}, from its step ${checkpoint.step}; that run stays as it is.`);
  return run;
}

/** The parent's config with the values of `set`. RCM_SET_<n> does not count: a variable left over makes no child. */
async function childConfig(
  { cwd }: BridgeContext,
  parentDir: string,
  set: ResumeOptions['set'] = [],
): Promise<ResolvedConfig> {
  const parent = readStoredResolved(parentDir);
  const { loadConfig } = await import('../config/load.ts');
  const child = await loadConfig(parent.config, { cwd, set });
  const fixed = configChanges(parent.config, child.config).find(({ mayChange }) => !mayChange);
  if (fixed) {
    throw new RcmBridgeError(
      'E_CONFIG_FIXED',
      `${fixed.path} cannot change in a run that has begun: it is ${JSON.stringify(fixed.before)}.`,
      {
        hint: `Start a new run with ${fixed.path}=${JSON.stringify(fixed.after)}; student.init takes the exported weights of this one.`,
        details: { ...fixed },
      },
    );
  }
  const origins = Object.entries(child.origins).map(([path, origin]) => [
    path,
    origin.kind === 'flag' ? origin : (parent.origins[path] ?? origin),
  ]);
  return { config: child.config, origins: Object.fromEntries(origins), source: parent.source };
}

function refusePast(job: Job, steps: number, { step }: Checkpoint): void {
  if (steps >= step) return;
  const key = stepsKey(job);
  throw new RcmBridgeError('E_CONFIG_VALUE', `${key} is ${steps}, and the checkpoint is of step ${step}.`, {
    hint: `Set ${key} to at least ${step}, or give an earlier --from-step.`,
    details: { steps, step },
  });
}
