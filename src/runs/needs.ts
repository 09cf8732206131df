/** Everything a distillation needs on this machine, found or missing: all of it at once, where a run names the first. */
import { existsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { processesOf } from '../config/parallel.ts';
import type { RcmConfig } from '../config/types.ts';
import { isUnfinished, shardsIn } from '../data/set-folder.ts';
import { isRcmBridgeError } from '../errors/index.ts';
import { networkNamed } from '../models/registry.ts';
import { dataNeeds } from '../plan/data-needs.ts';
import { layoutOf } from '../plan/layout.ts';
import type { PythonDescription } from '../python/doctor.ts';
import type { Environment } from '../python/home.ts';
import { locateWeights, namedWeights } from './weights.ts';

export interface Need {
  readonly what: string;
  /** What was found; null: it is missing. */
  readonly found: string | null;
  /** How to get what is missing, or ''. */
  readonly hint: string;
}

/** What this machine has. */
export interface Host {
  readonly python: Pick<PythonDescription, 'selected' | 'media'>;
  readonly gpus: readonly string[];
  /** Free on the disk of the runs folder. */
  readonly freeBytes: number;
  readonly env: Environment;
}

export function needsOf(config: RcmConfig, host: Host): readonly Need[] {
  return [
    ...environmentNeeds(config, host),
    ...gpuNeeds(config, host),
    ...weightNeeds(config, host),
    ...encoderNeeds(config, host),
    ...dataNeed(config),
    diskNeed(config, host),
  ];
}

const found = (what: string, where: string): Need => ({ what, found: where, hint: '' });
const missing = (what: string, hint: string): Need => ({ what, found: null, hint });

function environmentNeeds(config: RcmConfig, { python }: Host): readonly Need[] {
  const { selected, media } = python;
  const own = selected
    ? found('Python environment', selected.executable)
    : missing('Python environment', 'Make one: rcm-bridge env setup');
  if (config.model.textEncoder === 'labels') return [own];
  const packages = media.found
    ? found('media packages', media.found.executable)
    : missing('media packages', media.hint ?? 'Add them: rcm-bridge env setup --with media');
  return [own, packages];
}

function gpuNeeds({ compute }: RcmConfig, { gpus }: Host): readonly Need[] {
  const { device, gpusPerNode, nodes } = compute;
  if (device !== 'cuda') return [];
  const wanted = nodes === 1 ? `${gpusPerNode}` : `${gpusPerNode} on each of ${nodes} machines`;
  const here = gpus.length === 0 ? 'none' : `${gpus.length} x ${gpus[0]}`;
  if (gpus.length >= gpusPerNode) return [found('GPUs', nodes === 1 ? here : `${here}, on each of ${nodes} machines`)];
  const fewer = 'see `rcm-bridge plan` for fewer GPUs (--gpus N)';
  return [missing('GPUs', `${wanted} wanted, ${here} here; use a machine that has them, or ${fewer}.`)];
}

function weightNeeds(config: RcmConfig, { env }: Host): readonly Need[] {
  return namedWeights(config).map(({ key, locator, adapter }) => {
    try {
      return found(key, locateWeights(locator, adapter ? undefined : config.model.name, env));
    } catch (error) {
      if (!isRcmBridgeError(error)) throw error;
      const after = key === 'teacher.weights' ? useFetched(config) : '';
      return missing(key, `${error.message} ${error.hint ?? ''}${after}`.trim());
    }
  });
}

/** Text encoder, tokenizer and VAE, which prompts of previews and evaluations are drawn with. */
function encoderNeeds(config: RcmConfig, { env }: Host): readonly Need[] {
  const { model } = config;
  if (model.textEncoder === 'labels' || model.path === null) return [];
  const { family, release } = networkNamed(model.name);
  const root = modelRoot(model.path, env);
  const absent = Object.entries(family.encoderFiles).filter(
    ([, places]) => root === null || !places.some(place => existsSync(join(root, place))),
  );
  const names = Object.keys(family.encoderFiles);
  if (absent.length === 0 && root !== null) return [found(names.join(', '), root)];
  const lacking = absent.map(([name, places]) => `${name} (${places.join(' or ')})`).join(', ');
  const fetch = release ? ` Fetch them: rcm-bridge weights fetch hf:${release.repository} --with-encoders` : '';
  const what = absent.map(([name]) => name).join(', ');
  return [missing(what, `${model.path} lacks ${lacking}.${fetch}${useFetched(config)}`)];
}

/** What is fetched lies in the hub's cache, where a config finds it by its locator. */
function useFetched({ model, teacher }: RcmConfig): string {
  const { release } = networkNamed(model.name);
  if (release === null || teacher.weights !== 'model' || model.path?.startsWith('hf:')) return '';
  return ` Then: --set model.path=hf:${release.repository}`;
}

/** The folder of the whole model, of a path to it or to the network in it; null where there is none. */
function modelRoot(locator: string, env: Environment): string | null {
  try {
    const path = locateWeights(locator, undefined, env);
    const folder = statSync(path).isDirectory() ? path : dirname(path);
    return /[\\/]transformer$/.test(folder) ? dirname(folder) : folder;
  } catch (error) {
    if (isRcmBridgeError(error)) return null;
    throw error;
  }
}

function dataNeed({ name, data }: RcmConfig): readonly Need[] {
  if (data.kind === 'digits' || data.path === null) return [];
  const build = `rcm-bridge data build ${name} --prompts FILE`;
  if (isUnfinished(data.path)) return [missing('data', `The set in ${data.path} is not complete. Go on: ${build}`)];
  const shards = shardsIn(data.path);
  if (shards > 0) return [found('data', `${shards} shards in ${data.path}`)];
  const other = 'or set data.path to their folder (docs/data.md)';
  return [missing('data', `${data.path} has no shards. Make them: ${build}; ${other}.`)];
}

/** Checkpoints and exports; only this machine's share of them on several. */
function diskNeed(config: RcmConfig, { freeBytes }: Host): Need {
  const { checkpointBytes, checkpointsKept, exportBytes } = dataNeeds(config, layoutOf(config), null);
  const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0)} GB`;
  // One is written before the oldest goes.
  const wanted = (checkpointsKept + 1) * checkpointBytes + exportBytes;
  const state = `${gigabytes(freeBytes)} free, checkpoints and exports take up to ${gigabytes(wanted)}`;
  if (freeBytes >= wanted) return found('disk', state);
  const processes = processesOf(config).world;
  const shared = processes > config.compute.gpusPerNode ? ' (of all machines together)' : '';
  return missing('disk', `${state}${shared}. Choose another folder with --runs-dir, or lower checkpoints.keepLast.`);
}
