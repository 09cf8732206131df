import type { RcmConfigOutput } from './blocks/index.ts';
import { type Path, valueAt } from './layers.ts';

/**
 * Keys, or values of keys, that nothing reads yet, with the values that are accepted: those of the documented configs,
 * and what `auto` becomes, so that the output of `config print` is a config.
 * Whoever makes a key work removes its line.
 */
const accepted: Readonly<Record<string, readonly unknown[]>> = {
  'model.vae': [null, 'auto'],
  'model.textEncoder': ['labels', 'auto'],
  'losses.scm.allowNoisyDerivative': [false],
  'data.kind': ['digits', 'latentShards'],
  'data.holdOut': [0.2],
  'compute.precision': [precision('fp32', 'fp32'), precision('bf16', 'bf16'), precision('bf16', 'fp32')],
  'compute.offload': ['none', 'optimizer'],
  'compute.compile': [false],
  'checkpoints.async': [true],
  'evaluation.prompts': [null, 'builtin:video-8', 'builtin:image-8'],
  'evaluation.features': ['builtin:digits-classifier', null],
  'evaluation.benchmarks': [[]],
  'evaluation.previews.prompts': ['builtin:digits-10', 'builtin:video-8', 'builtin:image-8'],
  'health.reference': [null],
  'health.onAlarm': ['warn'],
  'logging.sinks': [[], ['csv'], ['tensorboard'], ['tensorboard', 'wandb']],
  'notify.webhook': [null],
};

function precision(matrices: 'fp32' | 'bf16', residual: 'fp32' | 'bf16') {
  return { compute: matrices, residual, time: 'fp32', master: 'fp32', reduce: 'fp32', ema: 'fp32' };
}

export interface NotYet {
  readonly path: Path;
  readonly value: unknown;
  /** The accepted values in words. */
  readonly accepted: string;
}

/** Values that are valid but would have no effect. */
export const findNotYet = (config: RcmConfigOutput): readonly NotYet[] =>
  Object.entries(accepted).flatMap(([name, values]) => {
    const path = name.split('.');
    const value = valueAt(config, path);
    if (values.some(other => isSame(other, value))) return [];
    return [{ path, value, accepted: values.map(other => JSON.stringify(other)).join(' or ') }];
  });

const isSame = (left: unknown, right: unknown): boolean => canonical(left) === canonical(right);

const canonical = (value: unknown): string =>
  JSON.stringify(value, (_key, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([left], [right]) => (left < right ? -1 : 1)))
      : inner,
  );

/** For tests: every path of the table has to exist. */
export const notYetPaths: readonly string[] = Object.keys(accepted);
