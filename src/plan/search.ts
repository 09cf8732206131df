/** What fits: the fewest GPUs, the largest batch and clip, and the smallest changes that make a config fit. */
import type { RcmConfig } from '../config/types.ts';
import { legalSizes, strideOf } from '../models/latent.ts';
import { sizedNetwork } from '../models/registry.ts';
import { dataRanks, keysOf, type Layout, layoutOf, layoutOn, withBatch, worldOf } from './layout.ts';
import type { Machine } from './machines.ts';
import { memoryOf } from './memory.ts';

/** A way to run a config: its keys as `--set` takes them. */
export interface Change {
  readonly set: Readonly<Record<string, unknown>>;
  /** Memory that each GPU must have then. */
  readonly needed: number;
}

const mostGpusPerNode = 8;
const worlds = [1, 2, 4, 8, 16, 32, 64, 128] as const;

const fits = (config: RcmConfig, layout: Layout, memory: number): boolean => memoryOf(config, layout).needed <= memory;

/** The fewest GPUs of this kind that a config fits on, weights and samples shared as far as need be; null: none of 128. */
export function fewestGpus(
  config: RcmConfig,
  memory: number,
): { readonly gpus: number; readonly change: Change } | null {
  for (const world of worlds) {
    const layout = sharings(config, world).find(candidate => fits(config, candidate, memory));
    if (layout) return { gpus: world, change: changeTo(config, config, layout) };
  }
  return null;
}

/** Layouts on so many GPUs, from the least sharing to the most; one sample at a time where the config has more. */
function sharings(config: RcmConfig, world: number): readonly Layout[] {
  const gpusPerNode = Math.min(world, mostGpusPerNode);
  const base = layoutOn(layoutOf(config), gpusPerNode, world / gpusPerNode);
  const powers = (most: number): readonly number[] => worlds.filter(size => size <= most);
  return powers(Math.min(world, mostGpusPerNode)).flatMap(context =>
    powers(world / context).map(shard => withBatch({ ...base, context, shard, microBatch: 1 }, base.batchSize)),
  );
}

/** The largest batch that goes through in one forward of each GPU; 0 when not even one sample does. */
export function largestBatch(config: RcmConfig, layout: Layout, memory: number): number {
  const batchOf = (microBatch: number): Layout => ({
    ...layout,
    microBatch,
    batchSize: microBatch * dataRanks(layout),
  });
  const most = largestThat(1 << 12, count => fits(config, batchOf(count), memory));
  return most * dataRanks(layout);
}

/** The longest legal clip that fits, in frames; null for networks of images. */
export function largestFrames(config: RcmConfig, layout: Layout, memory: number): number | null {
  const sized = sizedNetwork(config.model.name, config.model.overrides);
  if ('problems' in sized || sized.network.family.name === 'cosmos-predict2') return null;
  const { network } = sized;
  const { first, step, last } = legalSizes(network, strideOf(network, config.model.vae === null)).frames;
  const withFrames = (index: number): RcmConfig => ({
    ...config,
    model: { ...config.model, frames: first + (index - 1) * step },
  });
  const most = largestThat(1 + (last - first) / step, index => fits(withFrames(index), layout, memory));
  return most === 0 ? 0 : first + (most - 1) * step;
}

/** The largest of 1, 2, ... `most` that passes a test which all smaller ones pass, too; 0: none. */
function largestThat(most: number, passes: (value: number) => boolean): number {
  let [low, high] = [0, most + 1];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (passes(middle)) low = middle;
    else high = middle;
  }
  return low;
}

/**
 * Changes that make a config fit on a machine, the ones that change least first: how work is shared, then what is
 * computed again, then main memory, then adapters instead of all weights. Each is one change, or all so far together.
 */
export function changesThatFit(config: RcmConfig, layout: Layout, { gpu }: Machine): readonly Change[] {
  const world = worldOf(layout);
  const found: Change[] = [];
  let [together, shared] = [config, layout];
  for (const step of steps(config, world)) {
    const alone = step(config, layout);
    if (fits(...alone, gpu.memoryBytes)) found.push(changeTo(config, ...alone));
    [together, shared] = step(together, shared);
    if (found.length === 0 && fits(together, shared, gpu.memoryBytes)) return [changeTo(config, together, shared)];
  }
  return found;
}

type Step = (config: RcmConfig, layout: Layout) => readonly [RcmConfig, Layout];

function steps(config: RcmConfig, world: number): readonly Step[] {
  const compute =
    (change: Partial<RcmConfig['compute']>): Step =>
    (own, layout) => [{ ...own, compute: { ...own.compute, ...change } }, layout];
  const all: Step[] = [
    (own, layout) => [own, { ...layout, microBatch: 1 }],
    (own, layout) => [own, { ...layout, shard: world / layout.context }],
    compute({ activationCheckpointing: 'block' }),
    (own, layout) => [own, sharedSamples(own, layout)],
    compute({ offload: 'optimizer' }),
  ];
  if (config.student.lora === null) {
    all.push((own, layout) => [
      { ...own, student: { ...own.student, lora: { rank: 64, alpha: 64, targets: ['attention', 'ffn'] } } },
      layout,
    ]);
  }
  return all;
}

/** All GPUs of a machine share each sample, as far as the heads and the batch allow. */
function sharedSamples(config: RcmConfig, layout: Layout): Layout {
  const world = worldOf(layout);
  const sized = sizedNetwork(config.model.name, config.model.overrides);
  const heads = 'problems' in sized ? 1 : sized.network.sizes.numHeads;
  const context = [8, 4, 2, 1].find(size => layout.gpusPerNode % size === 0 && heads % size === 0) ?? 1;
  if (context <= layout.context) return layout;
  return withBatch({ ...layout, context, shard: world / context, microBatch: 1 }, layout.batchSize);
}

/** The keys in which a config with a layout differs from what was asked for. */
function changeTo(asked: RcmConfig, config: RcmConfig, layout: Layout): Change {
  const { activationCheckpointing, offload } = config.compute;
  const { lora } = config.student;
  return {
    set: {
      ...keysOf(asked, layout),
      ...(activationCheckpointing === asked.compute.activationCheckpointing
        ? {}
        : { 'compute.activationCheckpointing': activationCheckpointing }),
      ...(offload === asked.compute.offload ? {} : { 'compute.offload': offload }),
      ...(lora === asked.student.lora ? {} : { 'student.lora': lora }),
    },
    needed: memoryOf(config, layout).needed,
  };
}
