/** Jobs without a run directory, in a sidecar of their own. */
import type { SidecarBlob } from '../bridge/event-stream.ts';
import { sidecarExitError } from '../bridge/sidecar.ts';
import { AbortedError, PythonError } from '../errors/index.ts';
import type { EventBody, RunStart, SidecarEvent } from '../protocol/messages.ts';
import type { MediaPackage } from '../python/requirements.ts';
import { type BridgeContext, sidecarVariables } from './context.ts';
import { type Deferred, deferred } from './deferred.ts';

const defaultGraceMs = 2_000;
const blobPatienceMs = 30_000;

/** What one job is and who hears of it. */
export interface JobRequest {
  readonly start: RunStart;
  readonly onEvent?: (event: SidecarEvent) => void;
  readonly onBlob?: (blob: SidecarBlob) => Promise<void>;
}

export interface JobLimits {
  readonly signal: AbortSignal | undefined;
  /** How long the job may take to stop and clean up when it is aborted. */
  readonly graceMs?: number;
  /** Media packages that the jobs import. */
  readonly needs?: readonly MediaPackage[];
}

export type SidecarJob = JobRequest & JobLimits;

/** Runs a job to its end; one at a time. @throws E_SIDECAR_EXIT, E_ABORTED, PythonError with what the job found */
export type RunJob = (job: JobRequest) => Promise<EventBody<'end'>>;

interface CurrentJob extends JobRequest {
  readonly ended: Deferred<EventBody<'end'>>;
  readonly failed: Deferred<Error>;
  blobs: number;
}

/**
 * Resolves with the job's `end` when all its blobs have been handled; an error of a handler ends the job.
 * @throws E_PYTHON_*, E_SIDECAR_*, E_ABORTED, PythonError with what the job found
 */
export const runSidecarJob = (context: BridgeContext, job: SidecarJob): Promise<EventBody<'end'>> =>
  withSidecar(context, job, run => run(job));

/** Starts a sidecar for some jobs, one after the other, and stops it. @throws E_PYTHON_*, E_SIDECAR_*, E_ABORTED */
export async function withSidecar<T>(
  context: BridgeContext,
  { signal, needs, graceMs = defaultGraceMs }: JobLimits,
  use: (run: RunJob) => Promise<T>,
): Promise<T> {
  const { executable } = await context.findPython(signal, needs);
  let current: CurrentJob | undefined;
  const sidecar = await context.launch({
    python: executable,
    cwd: context.cwd,
    env: sidecarVariables(context.env),
    logger: context.logger,
    signal: signal ?? new AbortController().signal,
    onEvent: async event => {
      if (event.type === 'end') current?.ended.resolve(event.body);
      try {
        current?.onEvent?.(event);
      } catch (error) {
        current?.failed.resolve(error as Error);
      }
    },
    onBlob: async blob => {
      const job = current;
      try {
        await job?.onBlob?.(blob);
        if (job) job.blobs += 1;
      } catch (error) {
        job?.failed.resolve(error as Error);
      }
    },
  });
  const aborted = deferred<Error>();
  const onAbort = (): void => aborted.resolve(new AbortedError(signal?.reason));
  signal?.addEventListener('abort', onAbort, { once: true });
  const gone = sidecar.exited.then(sidecarExitError);
  const run: RunJob = async request => {
    const job: CurrentJob = { ...request, ended: deferred(), failed: deferred(), blobs: 0 };
    current = job;
    await sidecar.request('run.start', job.start);
    const end = await Promise.race([job.ended.promise, job.failed.promise, aborted.promise, gone]);
    if (end instanceof Error) throw end;
    if (end.error) throw new PythonError(end.error);
    await waitFor(() => job.blobs >= end.blobs, blobPatienceMs);
    return end;
  };
  try {
    return await use(run);
  } finally {
    signal?.removeEventListener('abort', onAbort);
    await sidecar.stop({ graceMs }).catch(() => sidecar.kill());
  }
}

async function waitFor(test: () => boolean, patienceMs: number): Promise<void> {
  const deadline = Date.now() + patienceMs;
  while (!test() && Date.now() < deadline) await new Promise(wake => setTimeout(wake, 20));
}
