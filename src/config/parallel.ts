/** How processes share the work: sizes that must divide. The same rules as py/rcm_sidecar/distributed/mesh.py. */
import { sizedNetwork } from '../models/registry.ts';
import type { RcmConfigOutput } from './blocks/index.ts';
import { type Conflict, conflict } from './conflict.ts';
import type { RcmConfig } from './types.ts';

/** Number of processes, and of those with samples of their own (the data axis). */
export interface Processes {
  readonly world: number;
  readonly data: number;
}

export function processesOf({ compute }: Pick<RcmConfig, 'compute'>): Processes {
  const world = compute.gpusPerNode * compute.nodes;
  return { world, data: world / compute.parallel.context };
}

export function findParallelConflicts(config: RcmConfigOutput): readonly Conflict[] {
  const world = worldConflicts(config);
  if (world.length > 0) return world;
  return [...batchConflicts(config), ...headConflicts(config)];
}

/** What keeps `batchSize` from being dealt out, in words; undefined if nothing does. */
export function undividedBatch(
  batchSize: number,
  { data }: Processes,
): { readonly text: string; readonly hint: string } | undefined {
  if (batchSize % data === 0) return undefined;
  const sizes = around(batchSize, data).join(' or ');
  return {
    text: `is ${batchSize}, which does not divide among ${data} processes with samples of their own`,
    hint: `Use ${sizes}, or change compute.gpusPerNode or compute.parallel.`,
  };
}

function worldConflicts({ compute }: RcmConfigOutput): readonly Conflict[] {
  const { gpusPerNode, nodes, parallel } = compute;
  const { shard, context } = parallel;
  const [world, part] = [gpusPerNode * nodes, shard * context];
  if (world % part === 0) return [];
  const counts = around(world, part).join(' or ');
  return [
    conflict(
      'compute.parallel',
      `asks for groups of shard ${shard} x context ${context} = ${part}, and ${world} processes (gpusPerNode ${gpusPerNode} x nodes ${nodes}) do not divide into them`,
      `Start ${counts} processes (--gpus), or change shard or context.`,
    ),
  ];
}

function batchConflicts(config: RcmConfigOutput): readonly Conflict[] {
  const { batchSize, microBatchSize } = config.schedule;
  const processes = processesOf(config);
  const undivided = undividedBatch(batchSize, processes);
  if (undivided) return [conflict('schedule.batchSize', undivided.text, undivided.hint)];
  const share = batchSize / processes.data;
  if (microBatchSize === 'auto' || share % microBatchSize === 0) return [];
  const whose = processes.data === 1 ? `schedule.batchSize ${batchSize}` : `the ${share} samples of a process`;
  return [
    conflict(
      'schedule.microBatchSize',
      `is ${microBatchSize}, which does not divide ${whose}`,
      'Use a divisor, or auto.',
    ),
  ];
}

/** Ulysses where it can divide the heads. */
export function autoContextKind({ compute, model }: RcmConfig): 'ulysses' | 'ring' {
  const sized = sizedNetwork(model.name, model.overrides);
  const divides = 'problems' in sized || sized.network.sizes.numHeads % compute.parallel.context === 0;
  return divides ? 'ulysses' : 'ring';
}

function headConflicts({ compute, model }: RcmConfigOutput): readonly Conflict[] {
  const { context, contextKind } = compute.parallel;
  const sized = sizedNetwork(model.name, model.overrides);
  if (contextKind !== 'ulysses' || 'problems' in sized) return [];
  const { numHeads } = sized.network.sizes;
  if (numHeads % context === 0) return [];
  const divisors = Array.from({ length: numHeads }, (_, index) => index + 1).filter(size => numHeads % size === 0);
  return [
    conflict(
      'compute.parallel.contextKind',
      `is ulysses, which divides the ${numHeads} attention heads, and context ${context} cannot`,
      `Use auto or ring, or context ${divisors.join(' or ')}.`,
    ),
  ];
}

/** The multiples of `part` next to `value`, without 0. */
function around(value: number, part: number): readonly number[] {
  const below = Math.floor(value / part) * part;
  return [below, below + part].filter(size => size > 0);
}
