import { z } from 'zod';
import { count, countOrZero, key, notNegative, positive } from './key.ts';
import { timeDistribution } from './time-distribution.ts';

const scm = z.strictObject({
  weight: key(notNegative.default(100), 'Weight of the loss'),
  timeDistribution: key(
    timeDistribution.default({ kind: 'logNormalSigma', mean: -0.4, std: 1.6 }),
    'How training times are drawn',
  ),
  timeDerivative: key(
    z.enum(['exact', 'semiContinuous', 'finiteDifference']).default('exact'),
    'exact: forward-mode derivative of the network',
  ),
  finiteDifferenceStep: key(positive.default(1e-4), 'Step of timeDerivative: finiteDifference'),
  tangentWarmupUpdates: key(
    countOrZero.default(150),
    'Student updates until the tangent has full weight; sCM only until then',
  ),
  tangentNormOffset: key(positive.nullable().default(0.1), 'g / (|g| + offset); null: no normalisation (ablation)'),
  warmup: key(z.enum(['scaled', 'publicSnapshot', 'fastgen']).default('scaled'), 'How the warm-up enters the tangent'),
  allowNoisyDerivative: key(z.boolean().default(false), 'Allow finite differences in bf16'),
});

const dmd = z.strictObject({
  weight: key(notNegative.default(0.5), 'Weight of the loss; 1 for Wan and Cosmos'),
  criticHeadStartSteps: key(countOrZero.default(0), 'Critic steps before the first DMD step'),
  timeDistribution: key(
    timeDistribution.default({ kind: 'logNormalSigma', mean: 0, std: 1.6 }),
    'How times for the critic and the score difference are drawn',
  ),
  rolloutSteps: key(count.default(4), 'Longest rollout; lengths 1 to this take turns'),
  rolloutTimes: key(
    z.union([z.literal('random'), z.array(positive)]).default('random'),
    'random, or a list of TrigFlow times',
  ),
});

const dcm = z.strictObject({
  weight: key(notNegative.default(100), 'Weight of the loss'),
  gridSteps: key(z.int().min(2).default(48), 'Points of the time grid'),
  shift: key(positive.default(5), 'Shift of the time grid'),
  teacherSteps: key(count.default(1), 'Grid steps that the teacher takes at once'),
});

export const losses = z.strictObject({
  scm: key(scm.prefault({}), 'Continuous-time consistency: rcm, scm'),
  dmd: key(dmd.prefault({}), 'Distribution matching: rcm, dmd'),
  dcm: key(dcm.prefault({}), 'Discrete-time consistency: dcm'),
});
