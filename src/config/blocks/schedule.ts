import { z } from 'zod';
import { count, key } from './key.ts';

export const schedule = z.strictObject({
  steps: key(count.default(1050), 'Trainer iterations in all; each updates one network once', 'mayChange'),
  studentEvery: key(count.default(3), 'Every n-th step updates the student, the others the critic'),
  batchSize: key(count.default(128), 'Samples a step over all GPUs'),
  microBatchSize: key(
    z.union([z.literal('auto'), count]).default('auto'),
    'Samples at a time on one GPU; accumulation is derived and must divide',
  ),
});
