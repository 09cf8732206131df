/** A machine of a run that another one leads: it has no run directory of its own, but sees that of machine 0. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { RcmConfig } from '../../config/types.ts';
import { RcmBridgeError, throwIfAborted } from '../../errors/index.ts';
import { anySignal, type BridgeContext, neededPackages, sidecarVariables } from '../context.ts';
import type { RunHandle, RunResult } from '../handle.ts';
import { checkHost } from '../host-checks.ts';
import type { RunOptions } from '../options.ts';
import type { Job } from '../record.ts';
import { openRemoteRun } from '../remote-run.ts';
import { type NodeProcess, startNodeProcess } from './node-process.ts';
import type { Placement } from './placement.ts';

/** What machine 0 needs to write down how the run ended, where it still can. */
const lastWordsMs = 3_000;

export interface JoinOptions extends Pick<RunOptions, 'signal' | 'onCreated' | 'detached'> {
  readonly job: Job;
  readonly config: RcmConfig;
  readonly placement: Extract<Placement, { launcher: 'torchrun' }>;
}

/**
 * Joins a run as another machine than the first: waits for all of them, starts the ranks of this one, and stays until
 * the run is over. The handle is that of the run, which its owner on machine 0 answers for.
 * @throws E_RENDEZVOUS, E_PYTHON_*, E_GPU, E_WEIGHTS_NOT_FOUND, E_DATA_NOT_FOUND, E_ABORTED, and what ended the run
 */
export async function joinRun(context: BridgeContext, options: JoinOptions): Promise<RunHandle> {
  const { job, config, placement, detached } = options;
  if (detached) {
    throw new RcmBridgeError('E_USAGE', '--detach is for machine 0; the others have nothing to leave behind.', {
      hint: 'Use nohup or a service where it has to outlive its terminal.',
    });
  }
  const signal = anySignal(context.options.signal, options.signal);
  const python = await context.findPython(signal, neededPackages(config));
  await checkHost(job, config, context.env);
  throwIfAborted(signal);
  const { host, port } = placement.rendezvous;
  context.notice(`Node ${placement.node} of ${config.compute.nodes}: joining the run at ${host}:${port}.`);
  const node = startNodeProcess({
    python: python.executable,
    cwd: context.cwd,
    env: sidecarVariables(context.env),
    node: placement.node,
    rendezvous: placement.rendezvous,
    config,
  });
  const onAbort = (): void => node.kill();
  signal?.addEventListener('abort', onAbort, { once: true });
  void node.over.then(() => signal?.removeEventListener('abort', onAbort));
  const { runDir } = await node.joined.catch(error => {
    throwIfAborted(signal);
    throw error;
  });
  const handle = joinedHandle(openRemoteRun(runDir, { signal }), node, placement.node);
  options.onCreated?.(handle);
  return handle;
}

function joinedHandle(run: RunHandle, process: NodeProcess, node: number): RunHandle {
  return {
    ...run,
    get state() {
      return run.state;
    },
    node,
    result: () => resultOf(run, process),
  };
}

/** What run.json says, and where machine 0 cannot say it any more, what was seen here. */
async function resultOf(run: RunHandle, { over }: NodeProcess): Promise<RunResult> {
  const error = await over;
  const result = run.result();
  if (error === undefined) return result;
  result.catch(() => undefined);
  const late = sleep(lastWordsMs, undefined, { ref: false }).then(() => Promise.reject(error));
  try {
    return await Promise.race([result, late]);
  } catch (thrown) {
    // A refused run has left no folder.
    throw (thrown as RcmBridgeError).code === 'E_RUN_NOT_FOUND' ? error : thrown;
  }
}
