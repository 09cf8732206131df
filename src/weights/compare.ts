/**
 * Whether the weights a config names are there and are those of its network: from their headers, nothing is loaded;
 * and whether the label table lies beside them.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { findSizeConflicts } from '../config/sizes.ts';
import type { RcmConfig } from '../config/types.ts';
import { type ErrorCode, errorCodes, isRcmBridgeError } from '../errors/index.ts';
import { networkNames, type Overrides, sizedNetwork } from '../models/registry.ts';
import type { WeightsInspection } from '../protocol/messages.ts';
import type { BridgeContext } from '../runs/context.ts';
import { type RunJob, withSidecar } from '../runs/sidecar-job.ts';
import { folderOf, howToFetch, locateWeights, type NamedWeights, namedWeights } from '../runs/weights.ts';
import { inspectIn } from './jobs.ts';

/** What is wrong with weights, as an error would say it. */
export interface WeightsProblem {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint: string;
}

/** Weights that a config names, and what their headers say. What is not known is null. */
export interface ComparedWeights extends NamedWeights {
  /** What the locator stands for; null when nothing is there. */
  readonly path: string | null;
  readonly found: boolean;
  readonly layout: WeightsInspection['layout'];
  /** The network whose weights they are, as far as shapes show it. */
  readonly network: WeightsInspection['network'];
  readonly tensors: number | null;
  readonly dtypes: WeightsInspection['dtypes'] | null;
  readonly bytes: number | null;
  /** Whether they are exactly the weights of the config's network; null when they were not compared, as adapters. */
  readonly fits: boolean | null;
  readonly problem: WeightsProblem | null;
}

export interface WeightsComparison {
  readonly weights: readonly ComparedWeights[];
  /** Why nothing was compared: no usable Python. null when all that is there was. */
  readonly notCompared: string | null;
}

type Found = Omit<ComparedWeights, keyof NamedWeights>;

const unknown: Found = {
  path: null,
  found: false,
  layout: null,
  network: null,
  tensors: null,
  dtypes: null,
  bytes: null,
  fits: null,
  problem: null,
};

/** @throws E_SIDECAR_*, E_PROTOCOL, E_ABORTED; what is wrong with weights is in the result */
export async function compareWeights(
  context: BridgeContext,
  config: RcmConfig,
  signal?: AbortSignal,
): Promise<WeightsComparison> {
  const named = namedWeights(config);
  const located = named.map(one => ({ ...one, ...locate(context, one, config) }));
  const comparable = located.filter(({ found, adapter }) => found && !adapter);
  const notCompared = comparable.length > 0 ? await whyNoPython(context, signal) : null;
  const inspected = notCompared === null ? await inspectAll(context, config, comparable, signal) : new Map();
  const compared = located.map(one => ({ ...one, ...(one.adapter ? {} : inspected.get(one.locator)) }));
  return { weights: compared.map(one => ({ ...one, problem: one.problem ?? missingTable(one, config) })), notCompared };
}

async function inspectAll(
  context: BridgeContext,
  config: RcmConfig,
  weights: readonly ComparedWeights[],
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<string, Found>> {
  const inspected = new Map<string, Found>();
  if (weights.length === 0) return inspected;
  await withSidecar(context, { signal }, async run => {
    for (const { locator, path } of weights) {
      if (path !== null && !inspected.has(locator)) inspected.set(locator, await inspect(run, config, locator, path));
    }
  });
  return inspected;
}

/** Labels are read from a table that was trained with the teacher and lies beside it. */
function missingTable({ key, path }: ComparedWeights, { model }: RcmConfig): WeightsProblem | null {
  if (key !== 'teacher.weights' || path === null || model.textEncoder !== 'labels') return null;
  const table = join(folderOf(path), tableFile);
  if (existsSync(table)) return null;
  const hint = `Copy ${tableFile} from beside the weights it was trained with.`;
  return { code: notFound, message: `There is no label table ${table}.`, hint };
}

function locate({ env }: BridgeContext, { locator, adapter }: NamedWeights, { model }: RcmConfig): Found {
  try {
    return { ...unknown, path: locateWeights(locator, adapter ? undefined : model.name, env), found: true };
  } catch (error) {
    return { ...unknown, problem: problemOf(error) };
  }
}

async function whyNoPython(context: BridgeContext, signal: AbortSignal | undefined): Promise<string | null> {
  try {
    await context.findPython(signal);
    return null;
  } catch (error) {
    if (!isRcmBridgeError(error) || error.code === 'E_ABORTED') throw error;
    return `${error.message} ${error.hint ?? ''}`.trim();
  }
}

async function inspect(run: RunJob, config: RcmConfig, locator: string, path: string): Promise<Found> {
  const { name, overrides } = config.model;
  try {
    const inspection = await inspectIn(run, path, { model: name, overrides });
    if (inspection.mismatch === null) return { ...facts(path, inspection), fits: true };
    const guessed = await inspectIn(run, path);
    const message = `${path} does not fit ${name}: ${inspection.mismatch.summary}.`;
    const hint = howToFit(config, guessed) ?? sentence(inspection.mismatch.cause);
    return { ...facts(path, guessed), fits: false, problem: { code: 'E_WEIGHTS_MISMATCH', message, hint } };
  } catch (error) {
    const problem = problemOf(error);
    const fetch = problem.code === notFound ? howToFetch(locator, name) : undefined;
    return { ...unknown, path, found: true, fits: false, problem: fetch ? { ...problem, hint: fetch } : problem };
  }
}

const facts = (path: string, { layout, network, tensors, dtypes, bytes }: WeightsInspection): Found => ({
  ...unknown,
  path,
  found: true,
  layout,
  network,
  tensors,
  dtypes,
  bytes,
});

const notFound = 'E_WEIGHTS_NOT_FOUND';
const tableFile = 'conditioner.safetensors';
const unusableWeights = 5;

/** Errors about the weights themselves are findings; others end the comparison. */
function problemOf(error: unknown): WeightsProblem {
  if (!isRcmBridgeError(error)) throw error;
  const { code, message, hint } = error;
  if (code !== notFound && errorCodes[code].exitCode !== unusableWeights) throw error;
  return { code, message, hint: sentence(hint || errorCodes[code].fix) };
}

/** What to set so that the config names the network of the weights; undefined when they are of none. */
function howToFit(config: RcmConfig, { network, mismatch }: WeightsInspection): string | undefined {
  const { model } = config;
  const name = networkNames.find(known => known === network?.name);
  if (network === null || name === undefined || mismatch !== null) return undefined;
  const theirs = sizedNetwork(name, network.overrides as Overrides);
  const ours = sizedNetwork(model.name, model.overrides);
  if ('problems' in theirs || 'problems' in ours) return undefined;
  const adapted = { ...config, model: { ...model, name, overrides: network.overrides as Overrides } };
  const [refused] = findSizeConflicts(adapted);
  if (refused !== undefined)
    return `They are of ${name} in a size that this config refuses: ${refused.text} Name others.`;
  if (name !== model.name) {
    const set = Object.entries(network.overrides).map(([key, value]) => `${key} ${shown(value)}`);
    return set.length === 0
      ? `They are the weights of ${name}: set model.name to that, or name others.`
      : `They are of ${name} with ${set.join(', ')}: set model.name and model.overrides to that, or name others.`;
  }
  const wanted = theirs.network.sizes as unknown as Readonly<Record<string, unknown>>;
  const had = ours.network.sizes as unknown as Readonly<Record<string, unknown>>;
  const changed = Object.keys(wanted).filter(key => shown(wanted[key]) !== shown(had[key]));
  const set = changed.map(key => `model.overrides.${key}=${shown(wanted[key])}`);
  return set.length > 0 ? `They fit with ${set.join(', ')}.` : undefined;
}

const shown = (value: unknown): string => JSON.stringify(value);

function sentence(text: string): string {
  const start = text.slice(0, 1).toUpperCase() + text.slice(1);
  return start === '' || start.endsWith('.') ? start : `${start}.`;
}
