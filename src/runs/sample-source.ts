/** What a user names to sample from: weights with what is known of how to sample them. */
import fs from 'node:fs';
import { join, resolve } from 'node:path';
import type { RcmConfig } from '../config/types.ts';
import { RcmBridgeError } from '../errors/index.ts';
import { isHubLocator } from '../weights/hub-cache.ts';
import { readStoredConfig } from './config-file.ts';
import type { BridgeContext } from './context.ts';
import { findRun } from './store.ts';
import { folderOf, locateWeights, teacherLocator } from './weights.ts';

const samplerName = 'sampler.json';
const exportLayouts = ['official', 'diffusers', 'comfyui'];

export interface SampleSource {
  /** The folder or file. */
  readonly path: string;
  /** From the sampler.json beside the weights; null where there is none, as in a download. */
  readonly sampler: KnownSampler | null;
  /** Of the run that was named. */
  readonly config: RcmConfig | null;
}

export interface KnownSampler {
  readonly takes: 'labels' | 'prompts';
  /** A teacher's own number; null for a student. */
  readonly steps: number | null;
}

export interface SourceOptions {
  /** The teacher of a run instead of its student. */
  readonly teacher: boolean;
  /** Weights are of use without a sampler.json: they will draw prompts as they were released. */
  readonly forPrompts: boolean;
}

/** @throws E_RUN_NOT_FOUND, E_WEIGHTS_NOT_FOUND, E_WEIGHTS_SAMPLER */
export function findSampleSource(context: BridgeContext, name: string, options: SourceOptions): SampleSource {
  const found = locate(context, name, options);
  const sampler = readSampler(found.path);
  if (sampler === null && !options.forPrompts) {
    throw new RcmBridgeError('E_WEIGHTS_SAMPLER', `There is no ${samplerName} in ${folderOf(found.path)}.`, {
      hint: 'Use a run, or a folder of whole weights below its export/, such as export/official; or give a --prompt.',
    });
  }
  return { ...found, sampler };
}

type Found = Omit<SampleSource, 'sampler'>;

function locate(context: BridgeContext, name: string, { teacher, forPrompts }: SourceOptions): Found {
  const { cwd, env, runsDir } = context;
  const asWeights = (locator: string): Found => ({ path: locateWeights(locator, undefined, env), config: null });
  if (name.startsWith('builtin:') || isHubLocator(name)) return asWeights(name);
  const path = resolve(cwd, name);
  const isThere = fs.existsSync(path) && !fs.existsSync(join(path, 'run.json'));
  const looksLikePath = name.includes('/') || name.includes('\\') || /\.(safetensors|pth|pt|bin)$/.test(name);
  if (isThere && (looksLikePath || forPrompts || fs.existsSync(join(path, samplerName)))) return asWeights(path);
  if (looksLikePath && !fs.existsSync(path)) {
    throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `There are no weights at ${path}.`, {
      hint: 'Give a run, an export folder or a weights file.',
    });
  }
  const run = findRun(runsDir, name, cwd);
  const config = readStoredConfig(run.dir);
  if (teacher) return { path: locateWeights(teacherLocator(config), config.model.name, env), config };
  const found = exportLayouts.map(layout => join(run.dir, 'export', layout)).find(folder => fs.existsSync(folder));
  if (found) return { path: found, config };
  throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `Run ${run.record.id} has no export: it is ${run.record.state}.`, {
    hint:
      run.record.state === 'stopped' || run.record.state === 'failed'
        ? `Finish it first: rcm-bridge resume ${run.record.id}`
        : 'Exports are written when a run ends.',
  });
}

/** What decides here how to go on; Python checks every value. */
interface SamplerFile {
  readonly kind?: string;
  readonly conditioner?: string | null;
  readonly sampler?: { readonly steps?: number };
}

function readSampler(path: string): KnownSampler | null {
  const file = join(folderOf(path), samplerName);
  if (!fs.existsSync(file)) return null;
  try {
    const { kind, conditioner, sampler } = JSON.parse(fs.readFileSync(file, 'utf8')) as SamplerFile;
    const steps = kind === 'teacher' ? (sampler?.steps ?? null) : null;
    return { takes: conditioner === null ? 'prompts' : 'labels', steps };
  } catch {
    throw new RcmBridgeError('E_WEIGHTS_SAMPLER', `${file} cannot be read.`, {
      hint: 'Export the run again, or use another one.',
    });
  }
}
