/** How GPUs share a run: the axes of `compute.parallel` and the samples each GPU takes. */
import { autoBranches } from '../config/branches.ts';
import type { RcmConfig } from '../config/types.ts';

export interface Layout {
  readonly gpusPerNode: number;
  readonly nodes: number;
  readonly shard: number;
  readonly context: number;
  /** Samples of a step over all GPUs. */
  readonly batchSize: number;
  /** Samples of one forward of a context group. */
  readonly microBatch: number;
}

export const worldOf = ({ gpusPerNode, nodes }: Pick<Layout, 'gpusPerNode' | 'nodes'>): number => gpusPerNode * nodes;

/** GPUs, or context groups, with samples of their own. */
export const dataRanks = (layout: Layout): number => worldOf(layout) / layout.context;

/** GPUs that one copy of the weights lies on. */
export const holders = ({ shard, context }: Layout): number => shard * context;

export const replicas = (layout: Layout): number => worldOf(layout) / holders(layout);

/** Forwards of a loss in one step. */
export const accumulation = (layout: Layout): number => layout.batchSize / dataRanks(layout) / layout.microBatch;

/** The layout that a config asks for; it divides, as `config check` has seen. */
export function layoutOf({ compute, schedule }: RcmConfig): Layout {
  const { gpusPerNode, nodes, parallel } = compute;
  const { shard, context } = parallel;
  const { batchSize, microBatchSize } = schedule;
  const share = batchSize / ((gpusPerNode * nodes) / context);
  const microBatch = microBatchSize === 'auto' ? share : microBatchSize;
  return { gpusPerNode, nodes, shard, context, batchSize, microBatch };
}

/** The keys of a config that have to change for a layout, as `--set` takes them. */
export function keysOf(config: RcmConfig, layout: Layout): Readonly<Record<string, unknown>> {
  const { compute, schedule } = config;
  const share = layout.batchSize / dataRanks(layout);
  const microBatch = schedule.microBatchSize === 'auto' ? share : schedule.microBatchSize;
  const keys: Readonly<Record<string, readonly [before: number, after: number]>> = {
    'compute.gpusPerNode': [compute.gpusPerNode, layout.gpusPerNode],
    'compute.nodes': [compute.nodes, layout.nodes],
    'compute.parallel.shard': [compute.parallel.shard, layout.shard],
    'compute.parallel.context': [compute.parallel.context, layout.context],
    'schedule.batchSize': [schedule.batchSize, layout.batchSize],
    'schedule.microBatchSize': [microBatch, layout.microBatch],
  };
  const changed = Object.entries(keys).filter(([, [before, after]]) => before !== after);
  return Object.fromEntries(changed.map(([key, [, after]]) => [key, after]));
}

/** The config with a layout written into it. */
export function withLayout(config: RcmConfig, layout: Layout): RcmConfig {
  const { gpusPerNode, nodes, shard, context, batchSize, microBatch } = layout;
  return {
    ...config,
    compute: {
      ...config.compute,
      gpusPerNode,
      nodes,
      parallel: { ...config.compute.parallel, shard, context },
    },
    schedule: { ...config.schedule, batchSize, microBatchSize: microBatch },
  };
}

/** How the teacher makes its velocity: so many calls, of so many times the samples of a micro-batch. */
export function teacherCalls(config: RcmConfig, layout: Layout): { readonly calls: number; readonly batches: number } {
  const { guidance, branches } = config.teacher;
  if (guidance === 1) return { calls: 1, batches: 1 };
  const onGpu = withLayout({ ...config, compute: { ...config.compute, device: 'cuda' } }, layout);
  const batched = (branches === 'auto' ? autoBranches(onGpu) : branches) === 'batched';
  return batched ? { calls: 1, batches: 2 } : { calls: 2, batches: 1 };
}

/**
 * The config's layout on another number of GPUs: context and shard become the largest divisors that are no larger than
 * before, the batch the next larger one that divides, micro-batches no larger than before.
 */
export function layoutOn(layout: Layout, gpusPerNode: number, nodes: number): Layout {
  const world = gpusPerNode * nodes;
  const context = largestDivisor(world, layout.context);
  const shard = largestDivisor(world / context, layout.shard);
  return withBatch({ ...layout, gpusPerNode, nodes, shard, context }, layout.batchSize);
}

/** The layout with at least this many samples a step. */
export function withBatch(layout: Layout, batchSize: number): Layout {
  const ranks = dataRanks(layout);
  const share = Math.ceil(batchSize / ranks);
  return { ...layout, batchSize: share * ranks, microBatch: largestDivisor(share, layout.microBatch) };
}

export const largestDivisor = (value: number, atMost: number): number => {
  for (let size = Math.min(value, atMost); size > 1; size--) if (value % size === 0) return size;
  return 1;
};
