/** `data build`: the synthetic set that a teacher samples from prompts (rcm-method section 9). */
import { existsSync, rmSync, statfsSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { loadConfig } from '../config/load.ts';
import type { RcmConfig, RcmConfigInput } from '../config/types.ts';
import { RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import { duration } from '../logging/progress.ts';
import { inGigabytes } from '../logging/sizes.ts';
import { buildSeconds, buildSteps, sampleBytes } from '../plan/data-needs.ts';
import { knownGpu } from '../plan/machines.ts';
import { type NetworkShape, networkShape } from '../plan/workload.ts';
import { listGpus } from '../python/gpus.ts';
import { anySignal, type BridgeContext, cacheDir } from '../runs/context.ts';
import { makeDirectory, writeFileAtomic } from '../runs/files.ts';
import { readPrompts } from '../runs/prompts.ts';
import { locateWeights, teacherLocator } from '../runs/weights.ts';
import { bytesIn, shardsIn } from './set-folder.ts';
import { commonStart, outOf, type SetOptions, type WrittenSet, writeSet } from './set-job.ts';

export interface BuildDataOptions extends SetOptions {
  /** A list, or a file with one prompt a line, or `builtin:video-8`, `builtin:image-8`. */
  readonly prompts: readonly string[] | string;
  /** Samples; sample i has prompt i, counted around. Default: one for each prompt. */
  readonly num?: number;
  /** Solver steps of the teacher. Default 100. */
  readonly steps?: number;
  /** Asked once with what it takes, before anything is loaded. Default: yes. */
  readonly confirm?: (question: string) => Promise<boolean>;
}

export interface BuiltSet extends WrittenSet {
  readonly prompts: number;
  /** Of sample 0; sample i has seed + i. */
  readonly seed: number;
  readonly steps: number;
}

/** Of the public set: guidance in the form v_neg + g (v_pos - v_neg), the shift and the start of the time grid. */
const sampler = { shift: 3, guidance: 5, sigmaMax: 5000 } as const;
/** What torch.save and tar add to a sample, at most. */
const overheadBytes = 10_000;
/** Samples of a shard, which lie on the disk twice while it is written (py/rcm_sidecar/data/set_writer.py). */
const mostPerShard = 64;

/**
 * Exits when the set is complete; called again after any end, it goes on where it stopped.
 * @throws E_CONFIG_*, E_USAGE, E_CONSENT, E_DISK_FULL, E_GPU, E_WEIGHTS_*, E_PYTHON_*, E_RUN_BUSY, E_SIDECAR_*, E_ABORTED
 */
export async function buildData(
  context: BridgeContext,
  source: string | RcmConfigInput,
  options: BuildDataOptions,
): Promise<BuiltSet> {
  throwIfAborted(anySignal(context.options.signal, options.signal));
  const began = Date.now();
  const { cwd, env } = context;
  const { config } = await loadConfig(source, { cwd, env, set: options.set ?? [] });
  const prompts = promptsOf(options.prompts, cwd);
  const { num = prompts.length, steps = buildSteps } = options;
  const out = resolve(cwd, outOf(config, options.out));
  const common = await commonStart(context, config, out, options.gpus);
  const teacher = locateWeights(teacherLocator(config), config.model.name, env);
  const need = await needOf(config, { prompts, num, steps, out, shares: common.shares });
  await agree(context, need, options.confirm);
  const promptsFile = join(cacheDir(env), `prompts-${process.pid}-${Date.now()}.json`);
  makeDirectory(dirname(promptsFile));
  writeFileAtomic(promptsFile, JSON.stringify(prompts));
  const start = { job: 'build', ...common, source: teacher, sampler: { ...sampler, steps }, promptsFile } as const;
  const needs = ['diffusers', 'transformers', 'ftfy', 'webdataset'] as const;
  const made = await writeSet(context, { ...start, samples: num, seed: config.seed }, needs, options).finally(() =>
    rmSync(promptsFile, { force: true }),
  );
  const written = { samples: num, made, shards: shardsIn(out), bytes: bytesIn(out) };
  return { out, ...written, prompts: prompts.length, seed: config.seed, steps, seconds: (Date.now() - began) / 1000 };
}

function promptsOf(prompts: BuildDataOptions['prompts'], cwd: string): readonly string[] {
  const listed = typeof prompts === 'string' ? readPrompts(prompts, cwd) : prompts;
  if (listed.length > 0 && listed.every(text => text.trim() !== '')) return listed;
  throw new RcmBridgeError('E_USAGE', 'A prompt is empty, or there is none.', { hint: 'Give at least one prompt.' });
}

interface SetPlan {
  readonly prompts: readonly string[];
  readonly num: number;
  readonly steps: number;
  readonly out: string;
  readonly shares: number;
}

interface SetNeed {
  readonly words: string;
  readonly bytes: number;
  readonly freeBytes: number | null;
}

async function needOf(config: RcmConfig, plan: SetPlan): Promise<SetNeed> {
  const { num, steps, out, shares, prompts } = plan;
  const shape = networkShape(config);
  const each = sampleBytes(shape) + overheadBytes;
  const there = Math.min(num, Math.floor(bytesIn(out) / each));
  const left = num - there;
  const bytes = left * each + Math.min(left, shares * mostPerShard) * each + textBytes(shape, prompts, num);
  const freeBytes = freeAt(out);
  const { name, frames, height, width } = config.model;
  const seeds = num === 1 ? `seed ${config.seed}` : `seeds ${config.seed} to ${config.seed + num - 1}`;
  const size = `${frames === 1 ? '' : `${frames} frames of `}${height} x ${width}`;
  const words = [
    `${num} samples of ${name} in ${out}: ${size}, ${prompts.length} ${prompts.length === 1 ? 'prompt' : 'prompts'}, ${seeds}.`,
    `Euler, ${steps} steps, guidance ${sampler.guidance}, shift ${sampler.shift}.${there > 0 ? ` About ${there} are there already.` : ''}`,
    `Disk: up to ${inGigabytes(bytes)}, ${freeBytes === null ? 'what is free is not known' : `${inGigabytes(freeBytes)} free`}. ${await timeOfBuild(config, steps, left, shares)}`,
  ].join('\n');
  return { words, bytes, freeBytes };
}

/** States of the prompts are kept until the set is complete; a token is at least a byte. */
function textBytes({ textRows, textSize }: NetworkShape, prompts: readonly string[], num: number): number {
  const used = new Set(prompts.slice(0, num));
  const rows = [...used].reduce((sum, text) => sum + Math.min(textRows, Buffer.byteLength(text) + 1), 0);
  return 2 * rows * (textSize / textRows);
}

async function timeOfBuild(config: RcmConfig, steps: number, left: number, shares: number): Promise<string> {
  const [title = ''] = config.compute.device === 'cpu' ? [] : await listGpus();
  const gpu = knownGpu(title);
  if (!gpu) return 'Time: shown once the first calls are measured.';
  const seconds = buildSeconds(config, gpu, steps) * Math.ceil(left / shares);
  return `Time: about ${duration(seconds)} on ${shares} x ${gpu.title}.`;
}

/** @throws E_DISK_FULL, E_CONSENT */
async function agree(
  { notice }: BridgeContext,
  { words, bytes, freeBytes }: SetNeed,
  confirm: BuildDataOptions['confirm'],
): Promise<void> {
  notice(words);
  if (freeBytes !== null && bytes > freeBytes) {
    const text = `The set takes up to ${inGigabytes(bytes)}, and ${inGigabytes(freeBytes)} are free.`;
    throw new RcmBridgeError('E_DISK_FULL', text, {
      hint: 'Choose another folder with --out, or fewer samples with --num.',
    });
  }
  if (confirm === undefined || (await confirm('Build it?'))) return;
  throw new RcmBridgeError('E_CONSENT', 'Nobody agreed to build the set.', {
    hint: 'Agree with --yes or RCM_BRIDGE_YES=1.',
  });
}

/** null: it is not known. */
function freeAt(folder: string): number | null {
  let place = folder;
  while (!existsSync(place) && dirname(place) !== place) place = dirname(place);
  const { bavail, bsize, blocks } = statfsSync(place);
  // Some network file systems report no sizes at all.
  return blocks === 0 ? null : bavail * bsize;
}
