/** What the sidecar does with weight files: reads their headers, verifies them, converts them. */
import { extname, resolve } from 'node:path';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import type { EventBody, LayoutName, RunStart, WeightsDtypeName, WeightsInspection } from '../protocol/messages.ts';
import { anySignal, type BridgeContext } from '../runs/context.ts';
import { type RunJob, withSidecar } from '../runs/sidecar-job.ts';
import { locateWeights } from '../runs/weights.ts';

/** A clean-up after an abort may have to wait for the write of one large tensor. */
const cancelGraceMs = 20_000;

export interface WeightsOptions {
  /** The network they should be of. Default: the one their shapes show. */
  readonly model?: string;
  /** Its overrides, as in the config. */
  readonly overrides?: Readonly<Record<string, unknown>>;
  readonly onProgress?: (progress: WeightsProgress) => void;
  readonly signal?: AbortSignal;
}

export interface ConvertOptions extends WeightsOptions {
  readonly to: LayoutName;
  /** A folder, or a file for layouts of one file; relative to `cwd`. */
  readonly out: string;
  /** Default: each tensor as it is stored. */
  readonly dtype?: WeightsDtypeName;
  /** Read the result back, compare every tensor, and a forward pass where memory allows. */
  readonly verify?: boolean;
  /** Replace what is at `out`. */
  readonly overwrite?: boolean;
}

/** Tensors done of all, and what is done with them: `reading`, `writing`, `comparing`. */
export interface WeightsProgress {
  readonly done: number;
  readonly total: number;
  readonly phase: string;
  readonly bytes: number;
  /** Where it is known. */
  readonly secondsLeft?: number;
}

export type WeightsVerification = EventBody<'verified'>;
export type WeightsConversion = EventBody<'converted'>;

/** Headers only: a moment at any size. Weights that do not fit are a result, with `mismatch`, not an error. */
export const inspectWeights = (
  context: BridgeContext,
  weights: string,
  options: WeightsOptions,
): Promise<WeightsInspection> =>
  weightsJob(context, { job: 'inspect', ...common(context, weights, options) }, 'inspected', options);

/** @throws E_WEIGHTS_*: unreadable, incomplete, of another network, not finite, not of the known hash */
export const verifyWeights = (
  context: BridgeContext,
  weights: string,
  options: WeightsOptions,
): Promise<WeightsVerification> =>
  weightsJob(context, { job: 'verify', ...common(context, weights, options) }, 'verified', options);

/** @throws E_USAGE, E_CONSENT, E_WEIGHTS_*, E_DISK_FULL */
export async function convertWeights(
  context: BridgeContext,
  weights: string,
  options: ConvertOptions,
): Promise<WeightsConversion> {
  const out = resolve(context.cwd, options.out);
  checkOutput(options.to, out);
  return weightsJob(
    context,
    {
      job: 'convert',
      ...common(context, weights, options),
      layout: options.to,
      out,
      dtype: options.dtype ?? null,
      check: options.verify ?? false,
      overwrite: options.overwrite ?? false,
    },
    'converted',
    options,
  );
}

/** What file a layout may be; without any of these endings, an output is a folder. */
const fileEndings: Readonly<Record<LayoutName, readonly string[]>> = {
  official: ['.safetensors', '.pt', '.pth'],
  comfyui: ['.safetensors'],
  diffusers: [],
};

function checkOutput(layout: LayoutName, out: string): void {
  const ending = extname(out);
  const legal = fileEndings[layout];
  if (!fileEndings.official.includes(ending) || legal.includes(ending)) return;
  const hint = legal.length === 0 ? 'Give a folder.' : `Give a folder, or a file that ends in ${legal.join(' or ')}.`;
  throw new RcmBridgeError('E_USAGE', `The ${layout} layout is no ${ending} file.`, { hint });
}

function common(context: BridgeContext, weights: string, { model, overrides }: WeightsOptions) {
  const locator = weights.includes(':') ? weights : resolve(context.cwd, weights);
  return { source: locateWeights(locator, undefined, context.env), model: model ?? null, overrides: { ...overrides } };
}

/** The headers of what lies at an absolute path, in a sidecar that runs already; other errors as `inspectWeights`. */
export const inspectIn = (
  run: RunJob,
  path: string,
  { model, overrides }: Pick<WeightsOptions, 'model' | 'overrides'> = {},
): Promise<WeightsInspection> =>
  reportOf(run, { job: 'inspect', source: path, model: model ?? null, overrides: { ...overrides } }, 'inspected');

async function weightsJob<T extends Report>(
  context: BridgeContext,
  start: RunStart,
  report: T,
  options: WeightsOptions,
): Promise<EventBody<T>> {
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  return withSidecar(context, { signal, graceMs: cancelGraceMs }, run =>
    reportOf(run, start, report, options.onProgress),
  );
}

type Report = 'inspected' | 'verified' | 'converted';

async function reportOf<T extends Report>(
  run: RunJob,
  start: RunStart,
  report: T,
  onProgress?: WeightsOptions['onProgress'],
): Promise<EventBody<T>> {
  let found: EventBody<T> | undefined;
  await run({
    start,
    onEvent: event => {
      if (event.type === report) found = event.body as EventBody<T>;
      if (event.type !== 'progress') return;
      const { step, steps, phase, values } = event.body;
      onProgress?.({ done: step, total: steps, phase, bytes: values.bytes ?? 0 });
    },
  });
  if (!found) throw new RcmBridgeError('E_PROTOCOL', `The sidecar ended without having ${report} anything.`);
  return found;
}
