/** One job in a sidecar of its own, from start to end, for jobs without a run directory. */
import type { SidecarBlob } from '../bridge/event-stream.ts';
import { sidecarExitError } from '../bridge/sidecar.ts';
import { AbortedError, PythonError } from '../errors/index.ts';
import type { EventBody, RunStart, SidecarEvent } from '../protocol/messages.ts';
import { type BridgeContext, sidecarVariables } from './context.ts';
import { deferred } from './deferred.ts';

const defaultGraceMs = 2_000;
const blobPatienceMs = 30_000;

export interface SidecarJob {
  readonly start: RunStart;
  readonly signal: AbortSignal | undefined;
  readonly onEvent?: (event: SidecarEvent) => void;
  readonly onBlob?: (blob: SidecarBlob) => Promise<void>;
  /** How long the job may take to stop and clean up when it is aborted. */
  readonly graceMs?: number;
}

/**
 * Resolves with the job's `end` when all its blobs have been handled; an error of a handler ends the job.
 * @throws E_PYTHON_*, E_SIDECAR_*, E_ABORTED, PythonError with what the job found
 */
export async function runSidecarJob(context: BridgeContext, job: SidecarJob): Promise<EventBody<'end'>> {
  const { start, signal, onEvent, onBlob, graceMs = defaultGraceMs } = job;
  const { executable } = await context.findPython(signal);
  const ended = deferred<EventBody<'end'>>();
  const failed = deferred<Error>();
  let blobs = 0;
  const sidecar = await context.launch({
    python: executable,
    cwd: context.cwd,
    env: sidecarVariables(context.env),
    logger: context.logger,
    signal: signal ?? new AbortController().signal,
    onEvent: async event => {
      if (event.type === 'end') ended.resolve(event.body);
      try {
        onEvent?.(event);
      } catch (error) {
        failed.resolve(error as Error);
      }
    },
    onBlob: async blob => {
      try {
        await onBlob?.(blob);
        blobs += 1;
      } catch (error) {
        failed.resolve(error as Error);
      }
    },
  });
  const aborted = deferred<Error>();
  const onAbort = (): void => aborted.resolve(new AbortedError(signal?.reason));
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    await sidecar.request('run.start', start);
    const gone = sidecar.exited.then(sidecarExitError);
    const end = await Promise.race([ended.promise, failed.promise, aborted.promise, gone]);
    if (end instanceof Error) throw end;
    if (end.error) throw new PythonError(end.error);
    await waitFor(() => blobs >= end.blobs, blobPatienceMs);
    return end;
  } finally {
    signal?.removeEventListener('abort', onAbort);
    await sidecar.stop({ graceMs }).catch(() => sidecar.kill());
  }
}

async function waitFor(test: () => boolean, patienceMs: number): Promise<void> {
  const deadline = Date.now() + patienceMs;
  while (!test() && Date.now() < deadline) await new Promise(wake => setTimeout(wake, 20));
}
