import { z } from 'zod';
import { key, positive } from './key.ts';

/** How training times are drawn. */
export const timeDistribution = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: key(z.literal('logNormalSigma'), 'Log-normal in sigma = tan(u)'),
    mean: key(z.number(), 'Mean of ln sigma'),
    std: key(positive, 'Standard deviation of ln sigma'),
  }),
  z.strictObject({
    kind: key(z.literal('uniformShifted'), 'Uniform in rectified-flow time, then shifted'),
    shift: key(positive, 'The shift; 1 is none'),
  }),
  z.strictObject({
    kind: key(z.literal('uniformLogisticNormal'), 'Half uniform, half logistic-normal in rectified-flow time'),
    std: key(positive, 'Standard deviation of the normal'),
  }),
]);
