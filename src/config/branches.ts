/** What `teacher.branches: auto` becomes. The rule is py/rcm_sidecar/training/branches.py, which says why. */
import { processesOf } from './parallel.ts';
import { sampleFacts } from './sizes.ts';
import type { RcmConfig } from './types.ts';

/** Tokens of one pass up to which the two guidance passes run as one on a GPU. */
export const batchedTokens = 8192;

export function autoBranches(config: RcmConfig): 'batched' | 'sequential' {
  const { compute, schedule } = config;
  if (compute.device !== 'cuda') return 'sequential';
  const share = schedule.batchSize / processesOf(config).data;
  const samples = schedule.microBatchSize === 'auto' ? share : schedule.microBatchSize;
  const tokens = samples * Math.ceil(sampleFacts(config).tokens / compute.parallel.context);
  return tokens <= batchedTokens ? 'batched' : 'sequential';
}
