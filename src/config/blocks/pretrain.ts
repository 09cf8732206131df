import { z } from 'zod';
import { count, key, share } from './key.ts';
import { ema, optimizer } from './optimizer.ts';
import { timeDistribution } from './time-distribution.ts';

/** `rcm-bridge pretrain`: a teacher and its conditioner, by flow matching. */
export const pretrain = z.strictObject({
  steps: key(count.default(6000), 'Training steps in all', 'mayChange'),
  batchSize: key(count.default(128), 'Samples a step'),
  optimizer: key(
    optimizer({
      learningRate: 4e-3,
      schedule: 'cosine',
      finalShare: 0.05,
      warmupUpdates: 200,
      betas: [0.9, 0.99],
      weightDecay: 0,
      clipNorm: 1,
    }),
    "The teacher's optimizer",
  ),
  timeDistribution: key(
    timeDistribution.default({ kind: 'uniformLogisticNormal', std: 1.2 }),
    'How training times are drawn',
  ),
  ema: key(ema.default({ kind: 'constant', decay: 0.999 }), 'Average of the weights that is exported'),
  labelDropout: key(share.default(0.1), 'Share of samples trained with the empty condition'),
});
