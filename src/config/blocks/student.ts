import { z } from 'zod';
import { count, key, positive, word } from './key.ts';
import { ema, optimizer } from './optimizer.ts';

const lora = z.strictObject({
  rank: key(count, 'Rank of the adapters, at most the smallest side of a layer that gets one'),
  alpha: key(positive, 'Scale: alpha / rank'),
  targets: key(z.array(z.enum(['attention', 'ffn'])).min(1), 'Layers that get adapters'),
});

const sampler = z.strictObject({
  sigmaMax: key(positive.default(80), 'Noise level of the first time'),
  times: key(
    z.array(positive).default([1.5, 1.4, 1.0]),
    'TrigFlow times between atan(sigmaMax) and 0, falling; n + 1 of them make n steps',
  ),
});

export const student = z.strictObject({
  init: key(word.default('teacher'), 'teacher, or a weights locator; with lora an adapter file'),
  lora: key(
    lora.nullable().default(null),
    'null: all weights train; else adapters train, on one frozen base that teacher, student and critic share',
  ),
  optimizer: key(
    optimizer({
      learningRate: 2e-4,
      schedule: 'linearToZero',
      finalShare: null,
      warmupUpdates: 100,
      betas: [0, 0.999],
      weightDecay: 0.01,
      clipNorm: null,
    }),
    "The student's optimizer",
  ),
  ema: key(
    z.array(ema).default([{ kind: 'power', relativeWidth: 0.1 }]),
    'Averages of the weights; the first one is evaluated and exported',
  ),
  sampler: key(sampler.prefault({}), "The student's sampler"),
});
