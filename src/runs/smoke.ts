/** `--smoke`: the whole path in seconds at full size of the network, before a run that takes days. */
import type { RcmConfig } from '../config/types.ts';

/**
 * The config with two steps of each phase, one checkpoint at the end, one preview, no gates. With a critic, student and
 * critic take turns and the tangent warm-up is left out, so that both student losses run.
 */
export function smokeConfig(config: RcmConfig): RcmConfig {
  const hasCritic = config.method === 'rcm' || config.method === 'dmd';
  const steps = hasCritic ? 4 : 2;
  return {
    ...config,
    losses: {
      ...config.losses,
      scm: { ...config.losses.scm, tangentWarmupUpdates: 0 },
      dmd: { ...config.losses.dmd, criticHeadStartSteps: 0 },
    },
    schedule: { ...config.schedule, steps, studentEvery: 2 },
    pretrain: { ...config.pretrain, steps: 2 },
    checkpoints: { ...config.checkpoints, everySteps: null },
    evaluation: {
      ...config.evaluation,
      everySteps: null,
      gates: [],
      previews: { ...config.evaluation.previews, everySteps: steps },
    },
    logging: { ...config.logging, everySteps: 1 },
  };
}
