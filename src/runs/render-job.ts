/** Pictures and videos of prompts: the sidecar encodes, samples, decodes and writes them. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import type { RcmConfig } from '../config/types.ts';
import { RcmBridgeError } from '../errors/index.ts';
import type { EventBody, RunStart } from '../protocol/messages.ts';
import type { MediaPackage } from '../python/requirements.ts';
import { isHubLocator } from '../weights/hub-cache.ts';
import { anySignal, type BridgeContext, cacheDir } from './context.ts';
import type { SampleOptions, SampleResult } from './options.ts';
import type { SampleSource } from './sample-source.ts';
import { runSidecarJob } from './sidecar-job.ts';
import { locateWeights } from './weights.ts';

type RenderStart = Extract<RunStart, { job: 'render' }>;

const needs: readonly MediaPackage[] = ['diffusers', 'transformers', 'av', 'ftfy'];
/** A cancel is heard between network calls; one of a large video takes seconds. */
const cancelGraceMs = 20_000;

/** @throws E_USAGE, E_WEIGHTS_*, E_PYTHON_*, E_GPU, E_DISK_FULL, E_SIDECAR_*, E_ABORTED (what is written stays) */
export async function renderPrompts(
  context: BridgeContext,
  source: SampleSource,
  prompts: readonly string[],
  options: SampleOptions,
): Promise<SampleResult> {
  const { seed = 0, onProgress } = options;
  const out = resolve(context.cwd, options.out ?? 'samples');
  const start = renderStart(context, source, prompts, { ...options, seed, out });
  const rendered: EventBody<'rendered'>[] = [];
  await runSidecarJob(context, {
    start,
    needs,
    graceMs: cancelGraceMs,
    signal: anySignal(context.options.signal, options.signal),
    onEvent: ({ type, body }) => {
      if (type === 'rendered') rendered.push(body);
      if (type === 'log' && body.level === 'warn') context.notice(body.message);
      if (type === 'progress') onProgress?.({ phase: body.phase, done: body.step, total: body.steps, bytes: 0 });
    },
  });
  const samples = rendered.map(({ path, ...facts }) => ({ file: path, ...facts }));
  return { files: samples.map(({ file }) => file), out, steps: samples[0]?.steps ?? 0, seed, samples };
}

function renderStart(
  context: BridgeContext,
  source: SampleSource,
  prompts: readonly string[],
  options: SampleOptions & { readonly seed: number; readonly out: string },
): RenderStart {
  const { teacher = false, steps = null, num = 1, device = 'auto', seed, out } = options;
  const { path, sampler, config } = source;
  if (sampler === null && !teacher && steps === null) {
    throw new RcmBridgeError('E_USAGE', `${path} does not say whether it is a teacher or a student.`, {
      hint: 'Add --teacher for weights as released, or --steps 1, 2 or 4 for a distilled student.',
    });
  }
  const released = sampler === null ? config : null;
  return {
    job: 'render',
    source: path,
    encoders: encodersOf(context, options, config),
    network: released && { name: released.model.name, overrides: { ...released.model.overrides } },
    teacher,
    teacherSampler: released && teacherSampler(released),
    prompts: [...prompts],
    num,
    seed,
    steps,
    frames: options.frames ?? released?.model.frames ?? null,
    height: options.height ?? released?.model.height ?? null,
    width: options.width ?? released?.model.width ?? null,
    device,
    outDir: out,
    cacheDir: cacheDir(context.env),
  };
}

const teacherSampler = ({ teacher }: RcmConfig): RenderStart['teacherSampler'] => ({
  ...teacher.sampler,
  guidance: teacher.guidance,
  negative: teacher.negative,
});

/** What the caller names has to be there; a model folder that moved since the run may lie beside the weights now. */
function encodersOf({ cwd, env }: BridgeContext, { encoders }: SampleOptions, config: RcmConfig | null): string | null {
  if (encoders !== undefined)
    return locateWeights(isHubLocator(encoders) ? encoders : resolve(cwd, encoders), undefined, env);
  const ofRun = config?.model.path ?? null;
  return ofRun === null || isHubLocator(ofRun) || existsSync(ofRun) ? ofRun : null;
}
