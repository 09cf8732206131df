/** `config check`: what is known of a config before a run, with the headers of the weights it names. */
import { loadConfig } from '../config/load.ts';
import { type SampleFacts, sampleFacts, sizeWarnings } from '../config/sizes.ts';
import type { RcmConfigInput } from '../config/types.ts';
import { compareWeights, type WeightsComparison } from '../weights/compare.ts';
import { anySignal, type BridgeContext } from './context.ts';
import type { RunOptions } from './options.ts';

export type CheckOptions = Pick<RunOptions, 'set' | 'signal'>;

export interface ConfigCheck extends WeightsComparison {
  /** The config is valid, and so is all that could be compared. */
  readonly valid: boolean;
  readonly name: string;
  readonly method: string;
  /** The network with its parameters, and what it sees of one sample. */
  readonly sample: SampleFacts;
  /** What is allowed but seldom meant. */
  readonly warnings: readonly string[];
}

/** Installs and writes nothing. @throws E_CONFIG_*, E_NETWORK_*, E_SIDECAR_*, E_ABORTED */
export async function checkConfig(
  context: BridgeContext,
  source: string | RcmConfigInput,
  { set = [], signal }: CheckOptions,
): Promise<ConfigCheck> {
  const { config } = await loadConfig(source, { cwd: context.cwd, env: context.env, set, typeCheck: true });
  const comparison = await compareWeights(context, config, anySignal(context.options.signal, signal));
  return {
    valid: comparison.weights.every(({ problem }) => problem === null),
    name: config.name,
    method: config.method,
    sample: sampleFacts(config),
    warnings: sizeWarnings(config),
    ...comparison,
  };
}
