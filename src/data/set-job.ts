/** Sets of training data: the processes that write one, each with a GPU of its own, and how far they are together. */
import { rmdirSync, rmSync } from 'node:fs';
import type { RcmConfig } from '../config/types.ts';
import { AbortedError, isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import type { RunStart, SidecarEvent } from '../protocol/messages.ts';
import { listGpus } from '../python/gpus.ts';
import type { MediaPackage } from '../python/requirements.ts';
import { anySignal, type BridgeContext, cacheDir } from '../runs/context.ts';
import { makeDirectory } from '../runs/files.ts';
import { checkGpus } from '../runs/host-checks.ts';
import { takeLock } from '../runs/lock.ts';
import type { RunOptions } from '../runs/options.ts';
import { runSidecarJob } from '../runs/sidecar-job.ts';
import { locateWeights } from '../runs/weights.ts';
import type { WeightsProgress } from '../weights/jobs.ts';
import { partsIn } from './set-folder.ts';

/** What `data build` and `data encode` have in common. */
export interface SetOptions extends Pick<RunOptions, 'set' | 'signal'> {
  /** Folder of the shards. Default: `data.path` of the config. */
  readonly out?: string;
  /** Processes, each with a GPU of its own unless `compute.device` is cpu. Default: those of the config that are here. */
  readonly gpus?: number;
  readonly onProgress?: (progress: WeightsProgress) => void;
}

/** A set of training data that is complete. */
export interface WrittenSet {
  /** Absolute path of its folder. */
  readonly out: string;
  readonly samples: number;
  /** Samples that this call made; the others were there. */
  readonly made: number;
  readonly shards: number;
  readonly bytes: number;
  readonly seconds: number;
}

type SetStart = Extract<RunStart, { job: 'build' | 'encode' }>;
type CommonStart = Omit<Extract<RunStart, { job: 'encode' }>, 'job' | 'folder' | 'list' | 'share'>;

/** A cancel is heard between network calls; one of a large video takes seconds. */
const cancelGraceMs = 20_000;
/** What is the same for all processes. @throws E_USAGE, E_WEIGHTS_NOT_FOUND, E_GPU */
export async function commonStart(
  { env }: BridgeContext,
  config: RcmConfig,
  outDir: string,
  gpus: number | undefined,
): Promise<CommonStart> {
  const { model, teacher, compute } = config;
  if (model.path === null) throw takesLabels(config);
  const encoders = locateWeights(model.path, model.name, env);
  const here = compute.device === 'cpu' ? 0 : (await listGpus()).length;
  const usable = Math.max(1, Math.min(compute.gpusPerNode, here));
  const shares = gpus ?? (compute.device === 'cpu' ? 1 : usable);
  if (compute.device === 'cuda') checkGpus(shares, here);
  return {
    network: { name: model.name, overrides: { ...model.overrides } },
    encoders,
    negative: teacher.negative,
    frames: model.frames,
    height: model.height,
    width: model.width,
    device: compute.device,
    shares,
    outDir,
    cacheDir: cacheDir(env),
  };
}

const takesLabels = ({ name }: RcmConfig): RcmBridgeError =>
  new RcmBridgeError('E_USAGE', `${name} takes labels; sets of latents are for models that read prompts.`, {
    hint: 'Name a config with model.path, such as wan2.1-t2v-1.3b-480p-rcm.',
  });

/** Where a set goes. @throws E_USAGE */
export function outOf(config: RcmConfig, out: string | undefined): string {
  if (config.model.path === null) throw takesLabels(config);
  const folder = out ?? config.data.path;
  if (folder !== null) return folder;
  throw new RcmBridgeError('E_USAGE', `${config.name} has no data.path.`, { hint: 'Give a folder with --out.' });
}

/** Runs all shares to their end; how many samples they made. The first error of one ends the others. */
export async function writeSet(
  context: BridgeContext,
  start: Omit<Extract<SetStart, { job: 'build' }>, 'share'> | Omit<Extract<SetStart, { job: 'encode' }>, 'share'>,
  needs: readonly MediaPackage[],
  options: SetOptions,
): Promise<number> {
  const failed = new AbortController();
  const given = anySignal(context.options.signal, options.signal);
  const progress = sharedProgress(start.shares, options.onProgress);
  return locked(start.outDir, async () => {
    const jobs = Array.from({ length: start.shares }, (_, share) =>
      runSidecarJob(context, {
        start: { ...start, share } as SetStart,
        needs,
        graceMs: cancelGraceMs,
        signal: anySignal(given, failed.signal),
        onEvent: event => {
          if (event.type === 'log' && event.body.level !== 'debug') context.notice(event.body.message);
          if (event.type === 'progress') progress(share, event.body);
        },
      }).catch(error => {
        failed.abort(error);
        throw error;
      }),
    );
    const ends = await Promise.allSettled(jobs);
    const errors = ends.flatMap(end => (end.status === 'rejected' ? [end.reason as unknown] : []));
    if (errors.length > 0) throw errors.find(error => !(error instanceof AbortedError)) ?? errors[0];
    rmSync(partsIn(start.outDir), { recursive: true, force: true });
    return ends.reduce((sum, end) => sum + (end.status === 'fulfilled' ? end.value.step : 0), 0);
  });
}

async function locked<T>(folder: string, work: () => Promise<T>): Promise<T> {
  makeDirectory(folder);
  const lock = await takeLock(folder).catch(error => {
    if (!isRcmBridgeError(error) || error.code !== 'E_RUN_BUSY') throw error;
    throw new RcmBridgeError('E_RUN_BUSY', `Another process writes the set in ${folder}.`, {
      hint: 'Wait for its end, or end it; what it has made stays.',
    });
  });
  try {
    return await work();
  } finally {
    lock.release();
    removeIfEmpty(folder);
  }
}

/** What was refused leaves no folder. */
function removeIfEmpty(folder: string): void {
  try {
    rmdirSync(folder);
  } catch {
    // It holds something.
  }
}

type ProgressBody = Extract<SidecarEvent, { type: 'progress' }>['body'];

/** Adds up what is counted in samples or calls; of what each process does alone, the first one's is shown. */
function sharedProgress(shares: number, show: SetOptions['onProgress']) {
  const latest = new Map<number, ProgressBody>();
  let began: { readonly ms: number; readonly done: number } | undefined;
  return (share: number, body: ProgressBody): void => {
    latest.set(share, body);
    const bodies = [...latest.values()];
    if (bodies.length < shares || bodies.some(({ phase }) => !/^(sampling|encoding files)$/.test(phase))) {
      if (share === 0) show?.({ phase: body.phase, done: body.step, total: body.steps, bytes: 0 });
      return;
    }
    const done = bodies.reduce((sum, { step }) => sum + step, 0);
    const total = bodies.reduce((sum, { steps }) => sum + steps, 0);
    began ??= { ms: Date.now(), done };
    const secondsLeft = ((Date.now() - began.ms) / 1000 / (done - began.done)) * (total - done);
    const known = Number.isFinite(secondsLeft) ? { secondsLeft } : {};
    const phase = body.phase === 'sampling' ? 'sampling: network calls' : body.phase;
    show?.({ phase, done, total, bytes: 0, ...known });
  };
}
