/** `weights fetch`: says what it would take, asks, and has the sidecar fetch it. */
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import type { EventBody } from '../protocol/messages.ts';
import { anySignal, type BridgeContext } from '../runs/context.ts';
import type { BridgeOptions } from '../runs/options.ts';
import { type RunJob, withSidecar } from '../runs/sidecar-job.ts';
import { suggestedLocator } from '../runs/weights.ts';
import { cachedSnapshot, type HubLocator, hubLocatorText, isHubLocator, parseHubLocator } from './hub-cache.ts';
import type { WeightsProgress } from './jobs.ts';

export interface FetchOptions {
  /** Branch, tag or commit, instead of the locator's. */
  readonly revision?: string;
  /** Which, where a repository holds both. Default: the original. */
  readonly layout?: 'official' | 'diffusers';
  /** Exactly these weight files of the repository, and what belongs beside them. */
  readonly files?: readonly string[];
  /** The VAE and the text encoder, too. */
  readonly encoders?: boolean;
  /** Megabytes done of all; phases are `fetching` and `checking`. */
  readonly onProgress?: (progress: WeightsProgress) => void;
  readonly signal?: AbortSignal;
}

type AllowDownload = BridgeOptions['allowDownload'];

export type FetchPlan = EventBody<'fetchPlan'>;

export interface FetchResult {
  readonly locator: string;
  /** The folder that holds the files. */
  readonly path: string;
  /** What the hub said; null when nothing was asked (offline, with a copy on this machine). */
  readonly plan: FetchPlan | null;
  /** sha256 of the files whose hash the hub lists, all equal to it. */
  readonly hashes: EventBody<'fetched'>['hashes'];
  readonly downloadedBytes: number;
  readonly seconds: number;
}

/**
 * Model files into the hub's cache on this machine, after saying name, size, licence and place and with consent.
 * @throws E_USAGE, E_CONSENT, E_OFFLINE, E_HUB_*, E_DISK_FULL, E_PYTHON_*, E_ABORTED
 */
export async function fetchWeights(context: BridgeContext, named: string, options: FetchOptions): Promise<FetchResult> {
  const signal = anySignal(context.options.signal, options.signal);
  throwIfAborted(signal);
  const locator = locatorOf(named, options.revision);
  const text = hubLocatorText(locator);
  if (context.options.offline) return copyOnThisMachine(context, locator);
  const { allowDownload = false } = context.options;
  return withSidecar(context, { signal, needs: ['huggingface_hub'] }, async run => {
    const { plan } = await fetchJob(run, locator, options, false);
    if (allowDownload === true) context.notice(describePlan(plan));
    else if (plan.missingBytes > 0) await askForConsent(plan, text, allowDownload);
    const { fetched } = await fetchJob(run, locator, options, true);
    if (!fetched) throw new RcmBridgeError('E_PROTOCOL', 'The sidecar ended without having fetched anything.');
    const { path, hashes, seconds } = fetched;
    return { locator: text, path, plan, hashes, downloadedBytes: plan.missingBytes, seconds };
  });
}

async function askForConsent(plan: FetchPlan, locator: string, allow: AllowDownload): Promise<void> {
  if (typeof allow === 'function' && (await allow(`${describePlan(plan)} Fetch it?`))) return;
  throw new RcmBridgeError('E_CONSENT', `Nobody agreed to fetch ${describePlan(plan)}`, {
    hint: `Agree with: rcm-bridge weights fetch ${locator} --download`,
  });
}

/** `Wan-AI/X: 5.68 GB to download into /cache, licence apache-2.0.` */
export function describePlan({ repository, revision, license, gated, path, bytes, missingBytes }: FetchPlan): string {
  const size = `${gigabytes(missingBytes)} to download${missingBytes < bytes ? ` of ${gigabytes(bytes)}` : ''}`;
  const terms = license === null ? 'no licence stated' : `licence ${license}`;
  return `${repository}@${revision}: ${size} into ${path}, ${terms}${gated ? ', access granted by its owner' : ''}.`;
}

const gigabytes = (bytes: number): string =>
  `${bytes < 1e7 ? (bytes / 1e9).toPrecision(2) : (bytes / 1e9).toFixed(2)} GB`;

function locatorOf(named: string, revision: string | undefined): HubLocator {
  if (!isHubLocator(named)) {
    const suggestion = suggestedLocator(named);
    throw new RcmBridgeError('E_USAGE', `${named} names no repository on the hub.`, {
      hint: suggestion ? `Did you mean ${suggestion}?` : 'Write hf:OWNER/NAME or hf:OWNER/NAME@REVISION.',
    });
  }
  const locator = parseHubLocator(named);
  return revision === undefined ? locator : parseHubLocator(`hf:${locator.repository}@${revision}`);
}

function copyOnThisMachine(context: BridgeContext, locator: HubLocator): FetchResult {
  const path = cachedSnapshot(locator, context.env);
  const text = hubLocatorText(locator);
  if (path === undefined) {
    throw new RcmBridgeError('E_OFFLINE', `${text} is not on this machine, and --offline forbids to fetch it.`, {
      hint: `Fetch it with a network: rcm-bridge weights fetch ${text} --download`,
    });
  }
  return { locator: text, path, plan: null, hashes: [], downloadedBytes: 0, seconds: 0 };
}

/** Without `download` it only asks the hub what there is. */
async function fetchJob(
  run: RunJob,
  { repository, revision }: HubLocator,
  { layout, files = [], encoders = false, onProgress }: FetchOptions,
  download: boolean,
): Promise<{ readonly plan: FetchPlan; readonly fetched: EventBody<'fetched'> | undefined }> {
  let plan: FetchPlan | undefined;
  let fetched: EventBody<'fetched'> | undefined;
  await run({
    start: { job: 'fetch', repository, revision, layout: layout ?? null, files: [...files], encoders, download },
    onEvent: event => {
      if (event.type === 'fetchPlan') plan = event.body;
      if (event.type === 'fetched') fetched = event.body;
      if (event.type !== 'progress') return;
      const { step, steps, phase, values } = event.body;
      onProgress?.({ done: step, total: steps, phase, bytes: values.bytes ?? 0 });
    },
  });
  if (!plan) throw new RcmBridgeError('E_PROTOCOL', 'The sidecar ended without having asked the hub.');
  return { plan, fetched };
}
