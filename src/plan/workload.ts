/** A config as numbers: what a network holds and does, before any machine is known. */
import { sampleFacts } from '../config/sizes.ts';
import type { RcmConfig } from '../config/types.ts';
import type { LinearLayer, ParameterCounts } from '../models/network.ts';
import { sizedNetwork } from '../models/registry.ts';

export type Checkpointing = RcmConfig['compute']['activationCheckpointing'];

/** What one network is. */
export interface NetworkShape {
  readonly parameters: ParameterCounts;
  readonly layers: number;
  readonly dim: number;
  readonly heads: number;
  /** Width of the feed-forward layers over `dim`. */
  readonly hidden: number;
  readonly linears: readonly LinearLayer[];
  readonly gatedBranches: number;
  readonly textRows: number;
  /** Numbers in a sample's text. */
  readonly textSize: number;
  /** Tokens of one sample. */
  readonly tokens: number;
  /** Numbers in a sample's latent. */
  readonly latentSize: number;
  /** Rank of the adapters of each role and the layers that have them; null: all weights train. */
  readonly lora: { readonly rank: number; readonly layers: readonly LinearLayer[] } | null;
  /** Bytes of a number in products, and of one in the residual stream. */
  readonly computeBytes: number;
  readonly residualBytes: number;
}

export function networkShape(config: RcmConfig): NetworkShape {
  const sized = sizedNetwork(config.model.name, config.model.overrides);
  if ('problems' in sized) throw new Error(sized.problems[0]?.text);
  const { family, sizes } = sized.network;
  const linears = family.linears(sizes);
  const { lora } = config.student;
  const facts = sampleFacts(config);
  const { compute, residual } = config.compute.precision;
  return {
    parameters: family.parameters(sizes),
    layers: sizes.numLayers,
    dim: sizes.dim,
    heads: sizes.numHeads,
    hidden: Math.max(...linears.filter(({ target }) => target === 'ffn').map(({ to }) => to)) / sizes.dim,
    linears,
    gatedBranches: family.gatedBranches,
    textRows: sizes.textLen,
    textSize: sizes.textLen * sizes.textDim,
    tokens: facts.tokens,
    latentSize: facts.latent.reduce((all, side) => all * side, 1),
    lora: lora && { rank: lora.rank, layers: linears.filter(({ target }) => lora.targets.includes(target)) },
    computeBytes: bytesOf(compute),
    residualBytes: compute === 'fp32' ? 4 : bytesOf(residual),
  };
}

const bytesOf = (precision: 'fp32' | 'bf16'): number => (precision === 'bf16' ? 2 : 4);

export const totalOf = ({ parameters: { block, wide, rest }, layers }: NetworkShape): number =>
  layers * block + wide + rest;

/** Parameters that one role trains. */
export function trainedParameters(shape: NetworkShape): number {
  if (shape.lora === null) return totalOf(shape);
  return shape.layers * adapterParameters(shape);
}

/** Parameters of one role's adapters in one block. */
export const adapterParameters = ({ lora }: NetworkShape): number =>
  (lora?.layers ?? []).reduce((sum, { from, to }) => sum + (lora?.rank ?? 0) * (from + to), 0);

export const keepsFirstMoment = ({ betas: [first = 0] }: RcmConfig['student']['optimizer']): boolean => first > 0;

export const hasCritic = (method: RcmConfig['method']): boolean => method === 'rcm' || method === 'dmd';

/** Updates of a whole run: the same rule as `updates_after` in py/rcm_sidecar/methods/rcm.py. */
export interface Updates {
  /** Student updates without DMD: rcm's tangent warm-up. */
  readonly warmup: number;
  readonly student: number;
  readonly critic: number;
}

export function updatesOf({ method, schedule, losses }: RcmConfig): Updates {
  const { steps, studentEvery } = schedule;
  if (!hasCritic(method)) return { warmup: 0, student: steps, critic: 0 };
  const warmup = method === 'rcm' ? Math.min(steps, losses.scm.tangentWarmupUpdates) : 0;
  const headStart = Math.min(steps - warmup, losses.dmd.criticHeadStartSteps);
  const student = Math.ceil((steps - warmup - headStart) / studentEvery);
  return { warmup, student, critic: steps - warmup - student };
}
