import { z } from 'zod';
import { key, word } from './key.ts';
import { optimizer } from './optimizer.ts';

/** The network that follows the student's distribution; rcm and dmd only. */
export const critic = z.strictObject({
  init: key(word.default('teacher'), 'teacher, or a weights locator; with student.lora an adapter file'),
  optimizer: key(
    optimizer({
      learningRate: 1e-3,
      schedule: 'constant',
      finalShare: null,
      warmupUpdates: 100,
      betas: [0, 0.999],
      weightDecay: 0.01,
      clipNorm: null,
    }),
    "The critic's optimizer",
  ),
});
