/** Becomes the owner of a run directory that has been made ready. */
import type { ResolvedConfig } from '../config/types.ts';
import { AbortedError, type RcmBridgeError } from '../errors/index.ts';
import type { RunStart } from '../protocol/messages.ts';
import { anySignal, type BridgeContext, type Interpreter, sidecarVariables } from './context.ts';
import { describeEnvironment, writeEnvironment } from './environment.ts';
import type { RunHandle } from './handle.ts';
import type { Placement } from './launchers/placement.ts';
import { torchrunLauncher } from './launchers/torchrun.ts';
import type { RunLock } from './lock.ts';
import type { RunOptions } from './options.ts';
import { startOwnedRun } from './owned-run.ts';
import type { Job, RunRecord } from './record.ts';

export interface OwnParts {
  readonly runDir: string;
  readonly record: RunRecord;
  readonly lock: RunLock;
  readonly start: Extract<RunStart, { job: Job }>;
  readonly config: ResolvedConfig['config'];
  readonly python: Interpreter;
  readonly placement: Placement;
  readonly options: Pick<RunOptions, 'signal' | 'onCreated'>;
  /** Puts the directory back as it was and throws. */
  readonly refused: (error: RcmBridgeError) => Promise<never>;
}

/** Becomes the owner of a prepared run directory and waits until the job is past its own checks. */
export async function own(context: BridgeContext, parts: OwnParts): Promise<RunHandle> {
  const { runDir, options } = parts;
  const signal = anySignal(context.options.signal, options.signal);
  const { cwd, commandLine } = context;
  const { parent } = parts.record;
  const described = await describeEnvironment({ python: parts.python, cwd, commandLine });
  const environment = { ...described, ...(parent ? { parent } : {}) };
  await writeEnvironment(runDir, environment);
  const run = await startOwnedRun({
    ...parts,
    environment,
    launch:
      parts.placement.launcher === 'torchrun'
        ? torchrunLauncher(context.launch, parts.placement.rendezvous)
        : context.launch,
    python: parts.python.executable,
    cwd,
    env: sidecarVariables(context.env),
    logger: context.logger,
    signal,
  });
  context.owned.add(run);
  run.over.then(() => context.owned.delete(run));
  options.onCreated?.(run.handle);
  const error = await run.accepted;
  if (error) return parts.refused(error);
  if (signal?.aborted) {
    await run.over;
    throw new AbortedError(signal.reason);
  }
  return run.handle;
}
