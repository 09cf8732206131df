import { z } from 'zod';
import { countOrZero, decay, key, notNegative, positive, share } from './key.ts';

interface OptimizerDefaults {
  readonly learningRate: number;
  readonly schedule: 'constant' | 'linearToZero' | 'cosine';
  readonly finalShare: number | null;
  readonly warmupUpdates: number;
  readonly betas: readonly [number, number];
  readonly weightDecay: number;
  readonly clipNorm: number | null;
}

/** The optimizer of one network. */
export const optimizer = (defaults: OptimizerDefaults) =>
  z
    .strictObject({
      kind: key(z.literal('adamw').default('adamw'), 'The optimizer'),
      learningRate: key(positive.default(defaults.learningRate), 'Learning rate after the warm-up'),
      schedule: key(
        z.enum(['constant', 'linearToZero', 'cosine']).default(defaults.schedule),
        'How the learning rate changes after the warm-up',
      ),
      finalShare: key(
        share.nullable().default(defaults.finalShare),
        'With cosine: the share of the learning rate that is left at the end',
      ),
      warmupUpdates: key(countOrZero.default(defaults.warmupUpdates), "Linear warm-up, in this network's own updates"),
      betas: key(
        z.tuple([decay, decay]).default([...defaults.betas]),
        'Decay of both moments; 0 keeps no first moment',
      ),
      epsilon: key(positive.default(1e-8), 'Added to the root of the second moment'),
      weightDecay: key(notNegative.default(defaults.weightDecay), 'Decoupled weight decay'),
      clipNorm: key(positive.nullable().default(defaults.clipNorm), 'Largest gradient norm; null: no clipping'),
    })
    .prefault({});

/** A running average of the weights. */
export const ema = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: key(z.literal('power'), 'Power function average'),
    relativeWidth: key(positive.max(0.28), 'Width of the average as a share of the training so far'),
  }),
  z.strictObject({
    kind: key(z.literal('constant'), 'Exponential average'),
    decay: key(decay, 'Decay of each update'),
  }),
]);
