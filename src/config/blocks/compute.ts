import { z } from 'zod';
import { count, key } from './key.ts';

const precisionOf = (description: string) => key(z.enum(['fp32', 'bf16']).default('fp32'), description);

const precision = z.strictObject({
  compute: precisionOf('Inputs of matrix products and attention'),
  residual: precisionOf('The residual stream'),
  time: precisionOf('The time path; bf16 makes the derivative useless'),
  master: precisionOf('Stored weights that train'),
  reduce: precisionOf('Sums of gradients over GPUs'),
  ema: precisionOf('Running averages of the weights'),
});

const parallel = z.strictObject({
  shard: key(count.default(1), 'GPUs that share one copy of the weights', 'mayChange'),
  context: key(count.default(1), 'GPUs that share one sample', 'mayChange'),
  contextKind: key(z.enum(['auto', 'ulysses', 'ring']).default('auto'), 'How a sample is shared', 'mayChange'),
});

export const compute = z.strictObject({
  device: key(z.enum(['auto', 'cpu', 'cuda']).default('cpu'), 'Where training runs'),
  threads: key(count.max(1024).default(2), 'CPU threads; stored in checkpoints, because results depend on it'),
  gpusPerNode: key(count.default(1), 'GPUs used on each machine', 'mayChange'),
  nodes: key(count.default(1), 'Machines', 'mayChange'),
  launcher: key(
    z.enum(['auto', 'local', 'torchrun', 'slurm']).default('auto'),
    'How processes on several GPUs or machines are started',
    'mayChange',
  ),
  parallel: key(parallel.prefault({}), 'How GPUs share the work; what is left over replicates'),
  precision: key(precision.prefault({}), 'Number formats'),
  profile: key(z.boolean().default(false), 'Write the time of each part of a step into the metrics', 'mayChange'),
  activationCheckpointing: key(
    z.enum(['none', 'selective', 'block', 'asymmetric']).default('none'),
    'What is computed again instead of kept',
    'mayChange',
  ),
  offload: key(z.enum(['none', 'optimizer', 'all']).default('none'), 'What is kept in main memory', 'mayChange'),
  attention: key(z.enum(['auto', 'hopper', 'triton', 'eager']).default('auto'), 'Attention kernel'),
  compile: key(z.boolean().default(false), 'Compile the blocks'),
  deterministic: key(z.boolean().default(true), 'The same bits on every run with the same threads and torch version'),
});
