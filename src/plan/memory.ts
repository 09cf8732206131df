/**
 * Memory of one GPU in training, by part. Pure arithmetic over what py/rcm_sidecar keeps; test/unit/plan compares it
 * with the peaks measured in docs/results/network.md.
 *
 * A unit is one activation [tokens, dim] of a micro-batch. What a block saves for its backward, and what is alive at its
 * fullest moment (the feed-forward layers), is counted in units from the networks' code.
 */
import type { RcmConfig } from '../config/types.ts';
import { accumulation, holders, type Layout, teacherCalls } from './layout.ts';
import {
  adapterParameters,
  type Checkpointing,
  hasCritic,
  keepsFirstMoment,
  type NetworkShape,
  networkShape,
  totalOf,
  trainedParameters,
} from './workload.ts';

/** Bytes on each GPU. */
export interface Memory {
  readonly weights: Readonly<Partial<Record<'teacher' | 'base' | 'student' | 'critic', number>>>;
  readonly averages: number;
  readonly optimizer: number;
  /** At the fullest moment, which `when` names. */
  readonly gradients: number;
  /** What blocks keep for backward. */
  readonly activations: number;
  /** What is alive inside the block that is at work. */
  readonly working: number;
  /** Gathered weights and gradients on their way to the shards. */
  readonly buffers: number;
  /** Latents of the losses, tables, workspaces of the libraries. */
  readonly other: number;
  readonly when: Moment;
  /** The sum: what torch has handed out at most. */
  readonly peak: number;
  /** With the CUDA context and the gaps between blocks of memory: what the GPU must have. */
  readonly needed: number;
  /** Main memory of one machine for what `compute.offload` keeps there. */
  readonly offloaded: number;
}

export type Moment = 'consistency loss' | 'DMD loss' | 'critic loss' | 'teacher' | 'optimizer';

/** Workspaces of cuBLAS and cuDNN, rotary tables. */
const libraryBytes = 0.12e9;
/** CUDA context, kernels, NCCL: not torch's, but the GPU's. */
const contextBytes = 0.9e9;
/** What torch's allocator holds beyond what is handed out; not measured in training, a usual value. */
const fragmentation = 0.04;
/** float64 and float32 copies of a latent inside a loss, its noise and its targets. */
const latentCopyBytes = 100;

const float32 = 4;

/** Memory of a run with a layout, on each of its GPUs. */
export function memoryOf(config: RcmConfig, layout: Layout): Memory {
  const shape = networkShape(config);
  const fixed = fixedBytes(config, shape, layout);
  const moments = momentsOf(config, shape, layout);
  const fullest = moments.reduce((most, moment) => (total(moment) > total(most) ? moment : most));
  const other = libraryBytes + layout.microBatch * shape.latentSize * latentCopyBytes;
  const held = [...Object.values(fixed.weights), fixed.averages, fixed.optimizer].reduce((sum, part) => sum + part, 0);
  const peak = held + total(fullest) + other;
  return {
    ...fixed,
    ...fullest,
    other,
    peak,
    needed: peak * (1 + fragmentation) + contextBytes,
    offloaded: offloadedBytes(config, shape, layout),
  };
}

interface Momentary {
  readonly when: Moment;
  readonly gradients: number;
  readonly activations: number;
  readonly working: number;
  readonly buffers: number;
}

const total = ({ gradients, activations, working, buffers }: Momentary): number =>
  gradients + activations + working + buffers;

/** What is there all the time. Storage is float32 for what trains; what is frozen is in the dtype of products. */
function fixedBytes(
  config: RcmConfig,
  shape: NetworkShape,
  layout: Layout,
): Pick<Memory, 'weights' | 'averages' | 'optimizer'> {
  const parts = holders(layout);
  const { wide } = shape.parameters;
  const frozen = (shape.computeBytes * (totalOf(shape) - wide) + float32 * wide) / parts;
  const trained = (float32 * trainedParameters(shape)) / parts;
  const critic = hasCritic(config.method) ? { critic: trained } : {};
  const weights =
    shape.lora === null
      ? { teacher: frozen, student: trained, ...critic }
      : { base: frozen, student: trained, ...critic };
  const resting = restingBytes(config, shape);
  if (config.compute.offload === 'none') {
    return { weights, averages: resting.averages / parts, optimizer: resting.moments / parts };
  }
  const visitors = Object.keys(critic).length + 1 + config.student.ema.length;
  return { weights, averages: 0, optimizer: visitors * slots * bucketBytes(shape, layout) };
}

/** Moments of all optimizers, two a parameter or one when betas[0] is 0, and averages; whole, float32. */
function restingBytes({ method, student, critic }: RcmConfig, shape: NetworkShape) {
  const owners = hasCritic(method) ? [student, critic] : [student];
  const kept = owners.reduce((sum, { optimizer }) => sum + (keepsFirstMoment(optimizer) ? 2 : 1), 0);
  const one = float32 * trainedParameters(shape);
  return { moments: kept * one, averages: student.ema.length * one };
}

function offloadedBytes(config: RcmConfig, shape: NetworkShape, layout: Layout): number {
  if (config.compute.offload === 'none') return 0;
  const { moments, averages } = restingBytes(config, shape);
  return ((moments + averages) / holders(layout)) * layout.gpusPerNode;
}

/** What visits the GPU at a time with `compute.offload`: py/rcm_sidecar/training/offload.py. */
const slots = 3;
function bucketBytes({ linears, dim }: NetworkShape, layout: Layout): number {
  const largest = Math.max(6 * dim * dim, ...linears.map(({ from, to }) => from * to));
  return float32 * Math.max(2 ** 24, largest / holders(layout));
}

/** The moments at which memory can be fullest. */
function momentsOf(config: RcmConfig, shape: NetworkShape, layout: Layout): readonly Momentary[] {
  const { method, compute } = config;
  const parts = partsOf(shape, layout, compute.activationCheckpointing);
  const again = accumulation(layout) > 1;
  const moments: Momentary[] = [
    {
      when: 'teacher',
      gradients: again ? parts.gradients : 0,
      activations: 0,
      working: teacherCalls(config, layout).batches * parts.bare,
      buffers: parts.gathered,
    },
    // The fused update allocates nothing.
    { when: 'optimizer', gradients: parts.gradients, activations: 0, working: 0, buffers: 0 },
  ];
  if (method !== 'dmd') moments.push(...lossMoments('consistency loss', parts, again, method !== 'dcm'));
  if (hasCritic(method)) moments.push(...lossMoments('DMD loss', parts, again || method === 'rcm', false));
  if (hasCritic(method)) moments.push(...lossMoments('critic loss', parts, again, false));
  return moments;
}

/** Bytes of what comes and goes. */
interface Parts {
  /** All gradients, float32, of the role that learns. */
  readonly gradients: number;
  /** All blocks and one block keep for backward. */
  readonly kept: number;
  readonly keptByOne: number;
  /** At work in a block: the teacher's; with gradient, value only and with a tangent; in backward. */
  readonly bare: number;
  readonly forward: number;
  readonly dual: number;
  readonly backward: number;
  readonly gathered: number;
  readonly reduced: number;
}

function partsOf(shape: NetworkShape, layout: Layout, mode: Checkpointing): Parts {
  const units = unitsOf(shape, mode, layout.context > 1);
  const unit = unitBytes(shape, layout);
  const keptByOne = units.kept * unit;
  // Without recomputation what is alive in a block is what it keeps, and there are the tangents beside it.
  const forward = mode === 'none' ? 0 : units.plain * unit;
  return {
    gradients: (float32 * trainedParameters(shape)) / holders(layout),
    kept: shape.layers * keptByOne,
    keptByOne,
    bare: units.bare * unit,
    forward,
    dual: forward + (units.dual - units.plain) * unit,
    backward: units.backward * unit,
    ...bufferBytes(shape),
  };
}

/**
 * A loss at its end of forward and at both ends of backward, which trades activations for gradients.
 * `before`: gradients of earlier losses of the step are there.
 */
function lossMoments(when: Moment, parts: Parts, before: boolean, dual: boolean): readonly Momentary[] {
  const { gradients, kept, keptByOne, gathered, reduced } = parts;
  const start = { when, gradients: before ? gradients : 0, activations: kept };
  const backward = { working: parts.backward, buffers: gathered + reduced };
  return [
    { ...start, working: dual ? parts.dual : parts.forward, buffers: gathered },
    { ...start, ...backward },
    { ...start, ...backward, gradients, activations: keptByOne },
  ];
}

/** Bytes of one activation [tokens, dim] of a micro-batch on one GPU. */
export const unitBytes = (shape: NetworkShape, layout: Layout): number =>
  layout.microBatch * Math.ceil(shape.tokens / layout.context) * shape.dim * shape.computeBytes;

export interface Units {
  /** A block keeps for backward. */
  readonly kept: number;
  /** Alive inside a block in forward: without adapters, a value without tangent. */
  readonly bare: number;
  /** As this role runs it: a value without tangent, and with one; in backward, beside what is kept. */
  readonly plain: number;
  readonly dual: number;
  readonly backward: number;
}

/** Longest row of the fused elementwise kernels (kernels/rcm_kernels/row_plan.py); a longer one runs eager. */
const longestRow = 8192;

/** Whether an adapter's result and the base's are added eagerly, in float32: 8,960 of Wan2.1 1.3B are too many. */
export const addsEagerly = (width: number): boolean => width > longestRow;

/**
 * What adapters of the first feed-forward layer hold, in rows of its width, of a value and of a value with its tangent:
 * the base's result, their own, its multiple and the sum. An eager addition has besides, in float32, what it adds to
 * (of both), and one summand with its product or the sum.
 */
const adapterRows = (width: number) => (addsEagerly(width) ? { value: 10, dual: 16 } : { value: 4, dual: 8 });

/** Activations by what a block does; see the top of this file. */
export function unitsOf(shape: NetworkShape, mode: Checkpointing, shared: boolean): Units {
  const { hidden, gatedBranches, lora, residualBytes, computeBytes } = shape;
  const adapted = lora !== null;
  // Log-sum-exp of both attentions, float32.
  const lse = (2 * shape.heads * float32) / (shape.dim * computeBytes);
  const residual = residualBytes / computeBytes;
  const bottlenecks = ((lora?.layers.length ?? 0) * (lora?.rank ?? 0)) / shape.dim;
  // Three of the residual; q, k, v before and after their norms, text q likewise, both outputs of attention, three
  // normed inputs; the branches that a gate scales; both sides of the activation.
  const saved = 3 * residual + 12 + gatedBranches + 2 * hidden + bottlenecks + lse;
  const attention = 2 + lse;
  const kept = {
    none: saved,
    block: residual,
    asymmetric: residual + attention,
    // Results of the products: q, k, v, text q, both of attention's, both of the feed-forward part.
    selective: residual + attention + 7 + hidden,
  }[mode];
  // Of the kept results those that backward needs as well, which are not there twice.
  const inBoth = { none: saved, block: residual, asymmetric: kept, selective: kept - (3 - gatedBranches) }[mode];
  // Residual in and out, the normed input, the last branch; both sides of the activation, or what adapters hold.
  const around = 2 * residual + 2;
  const rows = adapted ? adapterRows(hidden * shape.dim) : { value: 2, dual: 4 };
  // Tokens exchanged for heads: q, k and v sent and received, beside them and the output.
  const exchange = shared ? 2 * residual + 12 : 0;
  // What is computed again. Adapters add before there are gradients.
  const again = Math.max(0, saved - inBoth);
  // The gradients of residual and hidden layer; adapters have one more of the latter.
  const gradients = 1 + (adapted ? 2 : 1) * hidden;
  // Gradient, q, k, v and output exchanged, three gradients exchanged back, what self-attention saved.
  const exchangedBack = shared ? 31 : 0;
  return {
    kept,
    bare: Math.max(around + 2 * hidden, exchange),
    plain: Math.max(around + rows.value * hidden, exchange),
    dual: Math.max(2 * around + rows.dual * hidden, 2 * exchange),
    backward: Math.max(again + gradients, again > 0 ? again + (rows.value - 2) * hidden : 0, exchangedBack),
  };
}

/** FSDP2 gathers the block at work and the next one; gradients of a block are cast to float32 and reduced. */
function bufferBytes(shape: NetworkShape): Pick<Parts, 'gathered' | 'reduced'> {
  const { block } = shape.parameters;
  const trained = shape.lora === null ? block : adapterParameters(shape);
  return { gathered: 2 * block * shape.computeBytes, reduced: trained * (shape.computeBytes + float32) };
}
