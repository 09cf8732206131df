/** Seconds of a step: FLOPs over measured rates, bytes over bandwidth, and what the host takes to launch it all. */
import type { RcmConfig } from '../config/types.ts';
import { backwardFlops, type CallFlops, callFlops, times } from './flops.ts';
import { accumulation, holders, type Layout, replicas, teacherCalls } from './layout.ts';
import { type Gpu, networkBytes } from './machines.ts';
import { addsEagerly, unitBytes } from './memory.ts';
import {
  hasCritic,
  keepsFirstMoment,
  type NetworkShape,
  networkShape,
  totalOf,
  trainedParameters,
} from './workload.ts';

/** Seconds by part. `total` is their sum. */
export interface StepTime {
  readonly teacher: number;
  /** Student and critic calls without gradient. */
  readonly sampling: number;
  /** Forward with gradient, and backward with what is computed again. */
  readonly forward: number;
  readonly backward: number;
  /** Optimizer and averages. */
  readonly update: number;
  /** Waiting for random numbers, which the CPU draws for the whole batch during the step before. */
  readonly draws: number;
  readonly total: number;
}

export interface RunTime {
  /** rcm's tangent warm-up: a student update without DMD. */
  readonly warmup: StepTime | null;
  /** Student updates; of rollouts of all lengths, on average. */
  readonly student: StepTime;
  readonly critic: StepTime | null;
  /** One more student call of a rollout. */
  readonly rolloutCall: number;
  /** One student call, and one guided teacher call, for a sample. */
  readonly studentCall: number;
  readonly teacherCall: number;
}

/**
 * Host time of a block, where the host is the limit: about the medians of the parts of the steps of Cosmos-Predict2 2B
 * at batch 1 (docs/results/paper-runs.md), over its 28 blocks. `dual` is the value's at the ratio of
 * docs/results/network.md, where another host took 96.5 and 170 ms. `fsdpSeconds`: what its hooks take in a pass, and in
 * backward, which also reduces. An adapter adds four launches a layer: not measured.
 */
const hostSeconds = { value: 4.3e-3, dual: 7.6e-3, backward: 7.9e-3 } as const;
const fsdpSeconds = { forward: 0.95e-3, backward: 2e-3 } as const;
const hostFactor = { recorded: { value: 1.53, dual: 1.18 }, again: 0.77, adapted: 1.9 } as const;

/**
 * Backward of the elementwise kernels over their forward: 40 ms over 23 for Wan2.1 1.3B, and 60 with the bias gradients,
 * which frozen weights do not have.
 */
const elementwiseBackward = { trained: 2.6, frozen: 1.75 } as const;
/**
 * Passes over the results of the layers with adapters: two thin products, a multiple, a sum, and what backward reads and
 * writes. Counted from the code; an eager sum, in float32, takes 21 passes instead of three (measured: 4.8 ms a block of
 * Wan2.1 1.3B).
 */
const adapterPasses = { forward: 7, forwardEager: 25, backward: 9 } as const;
/** Bytes a parameter moves within the GPU: cast and copied when gathered, its gradient cast, copied and added. */
const gatheredBytes = { trained: 10, frozen: 8, gradient: 18 } as const;
/**
 * float32 tensors that an update reads and writes: the norm reads the gradient; the fused kernel reads and writes
 * parameter, gradient and second moment. With a first moment, clipping, and for each average. Counted, not measured.
 */
const updatePasses = { plain: 7, firstMoment: 1, clip: 2, average: 3 } as const;
/** A normal number on one CPU thread; machines differ by a factor of two. */
const drawSeconds = 10e-9;
/** Main memory to GPU, and back at the same time, bytes/s; PCIe 4, not measured. */
const hostLinkBytes = 25e9;

/** Everything a call's time depends on. */
interface Setting {
  readonly config: RcmConfig;
  readonly shape: NetworkShape;
  readonly layout: Layout;
  readonly gpu: Gpu;
  /** Between the GPUs that hold one copy of the weights, and between those that share a sample. */
  readonly weightLink: number;
  readonly tokenLink: number;
}

export function timeOf(config: RcmConfig, layout: Layout, gpu: Gpu): RunTime {
  const shape = networkShape(config);
  const linkOver = (size: number): number => (size > layout.gpusPerNode ? networkBytes : gpu.linkBytes);
  const setting: Setting = {
    config,
    shape,
    layout,
    gpu,
    weightLink: linkOver(holders(layout)),
    tokenLink: linkOver(layout.context),
  };
  const { method } = config;
  const critic = hasCritic(method);
  const student = method === 'dmd' ? dmdLoss(setting) : consistencyLoss(setting);
  const both = method === 'rcm' ? added(student, dmdLoss(setting)) : student;
  const samples = layout.microBatch;
  return {
    warmup: method === 'rcm' ? finished(setting, student) : null,
    student: finished(setting, both),
    critic: critic ? finished(setting, criticLoss(setting)) : null,
    rolloutCall: critic ? accumulation(layout) * value(setting) : 0,
    studentCall: value(setting) / samples,
    teacherCall: teacher(setting) / samples,
  };
}

/** Seconds of a step's losses, and how many whole batches of normal numbers they draw. */
interface LossTime {
  readonly teacher: number;
  readonly sampling: number;
  readonly forward: number;
  readonly backward: number;
  readonly noises: number;
}

function consistencyLoss(setting: Setting): LossTime {
  const { method, losses } = setting.config;
  const exact = losses.scm.timeDerivative === 'exact';
  const dual = method !== 'dcm' && losses.scm.timeDerivative !== 'finiteDifference';
  const teacherSteps = method === 'dcm' ? losses.dcm.teacherSteps : 1;
  return {
    teacher: teacherSteps * teacher(setting),
    // dCM's target, or the other point of a difference.
    sampling: method === 'dcm' || !exact ? value(setting) : 0,
    forward: recorded(setting, dual ? 'dual' : 'value'),
    backward: backward(setting),
    noises: 1,
  };
}

/** Rollouts of 1 to n calls take turns: (n + 1) / 2 on average, the last of them with gradient. */
const rolloutCalls = ({ config }: Setting): number => (config.losses.dmd.rolloutSteps + 1) / 2;

const dmdLoss = (setting: Setting): LossTime => ({
  teacher: teacher(setting),
  sampling: rolloutCalls(setting) * value(setting), // all but the last call of the rollout, and the critic's
  forward: recorded(setting, 'value'),
  backward: backward(setting),
  noises: rolloutCalls(setting) + 1,
});

const criticLoss = (setting: Setting): LossTime => ({
  teacher: 0,
  sampling: rolloutCalls(setting) * value(setting),
  forward: recorded(setting, 'value'),
  backward: backward(setting),
  noises: rolloutCalls(setting) + 1,
});

const added = (left: LossTime, right: LossTime): LossTime => ({
  teacher: left.teacher + right.teacher,
  sampling: left.sampling + right.sampling,
  forward: left.forward + right.forward,
  backward: left.backward + right.backward,
  noises: left.noises + right.noises,
});

function finished(setting: Setting, loss: LossTime): StepTime {
  const { layout, shape } = setting;
  const forwards = accumulation(layout);
  const parts = {
    teacher: forwards * loss.teacher,
    sampling: forwards * loss.sampling,
    forward: forwards * loss.forward,
    backward: forwards * loss.backward,
    update: updateSeconds(setting),
  };
  const busy = Object.values(parts).reduce((sum, part) => sum + part, 0);
  const draws = Math.max(0, loss.noises * layout.batchSize * shape.latentSize * drawSeconds - busy);
  return { ...parts, draws, total: busy + draws };
}

/** The teacher's velocity of a micro-batch, with guidance. */
function teacher(setting: Setting): number {
  const { calls, batches } = teacherCalls(setting.config, setting.layout);
  const call = callSeconds(setting, {
    flops: times(callFlops(setting.shape, 'value', false), batches),
    elementwise: batches,
    adapters: { forward: 0, backward: 0 },
    exchanged: 4 * batches,
    gathered: 'frozen',
    host: hostOf(setting, 'value', 1),
  });
  return calls * call;
}

const isAdapted = ({ shape }: Setting): boolean => shape.lora !== null;

/** A student or critic call without gradient. */
function value(setting: Setting): number {
  const adapted = isAdapted(setting);
  return callSeconds(setting, {
    flops: callFlops(setting.shape, 'value', adapted),
    elementwise: 1,
    adapters: { forward: adapted ? 1 : 0, backward: 0 },
    exchanged: 4,
    gathered: adapted ? 'frozen' : 'trained',
    host: hostOf(setting, 'value', adaptedFactor(adapted)),
  });
}

/** A student or critic call with gradient. */
function recorded(setting: Setting, kind: 'value' | 'dual'): number {
  const adapted = isAdapted(setting);
  const doubled = kind === 'dual' ? 2 : 1;
  return callSeconds(setting, {
    flops: callFlops(setting.shape, kind, adapted),
    elementwise: doubled,
    adapters: { forward: adapted ? doubled : 0, backward: 0 },
    exchanged: 4 * doubled,
    gathered: adapted ? 'frozen' : 'trained',
    host: hostOf(setting, kind, hostFactor.recorded[kind] * adaptedFactor(adapted)),
  });
}

function backward(setting: Setting): number {
  const mode = setting.config.compute.activationCheckpointing;
  const adapted = isAdapted(setting);
  const again = mode === 'none' ? 0 : 1;
  return callSeconds(setting, {
    flops: backwardFlops(setting.shape, mode),
    elementwise: elementwiseBackward[adapted ? 'frozen' : 'trained'] + again,
    adapters: adapted ? { forward: again, backward: 1 } : { forward: 0, backward: 0 },
    exchanged: 8 + (mode === 'block' ? 4 : 0),
    gathered: adapted ? 'frozen' : 'trained',
    gradients: true,
    host:
      setting.shape.layers *
      ((hostSeconds.backward + again * hostFactor.again * hostSeconds.value) * adaptedFactor(adapted) +
        fsdpSeconds.backward),
  });
}

const adaptedFactor = (adapted: boolean): number => (adapted ? hostFactor.adapted : 1);

const hostOf = ({ shape }: Setting, kind: 'value' | 'dual', factor: number): number =>
  shape.layers * (hostSeconds[kind] * factor + fsdpSeconds.forward);

interface Call {
  /** Of one sample. */
  readonly flops: CallFlops;
  /** Elementwise work over that of a value's forward. */
  readonly elementwise: number;
  /** Times that all adapters run, forward and backward. */
  readonly adapters: { readonly forward: number; readonly backward: number };
  /** Activations that each block exchanges in Ulysses. */
  readonly exchanged: number;
  readonly gathered: 'trained' | 'frozen';
  readonly gradients?: boolean;
  readonly host: number;
}

/** Whichever is slowest of device, host and links; the exchange of tokens for heads overlaps with nothing. */
function callSeconds(setting: Setting, call: Call): number {
  const { shape, layout, gpu, tokenLink } = setting;
  const share = layout.microBatch / layout.context;
  const unit = unitBytes(shape, layout);
  const elementwise = shape.layers * elementwiseUnits(shape, call) * unit;
  const moved = movedBytes(setting, call);
  const device =
    share * flopSeconds(call.flops, gpu) + (elementwise / gpu.shares.elementwise + moved.inside) / gpu.copyBytes;
  const exchanged = shape.layers * call.exchanged * unit * ((layout.context - 1) / layout.context);
  return Math.max(device, call.host, moved.seconds) + exchanged / tokenLink;
}

/** Activations that a block's elementwise kernels read and write in a call, with the adapters' passes. */
function elementwiseUnits({ dim, hidden, lora }: NetworkShape, { elementwise, adapters }: Call): number {
  const widths = (lora?.layers ?? []).filter(({ rows }) => rows === 'tokens').map(({ to }) => to);
  const passes = (width: number): number =>
    adapters.forward * (addsEagerly(width) ? adapterPasses.forwardEager : adapterPasses.forward) +
    adapters.backward * adapterPasses.backward;
  const adapted = widths.reduce((sum, width) => sum + passes(width) * width, 0);
  return elementwise * (19 + 2 * hidden) + adapted / dim;
}

const flopSeconds = (flops: CallFlops, { matmulFlops, shares }: Gpu): number =>
  (flops.product / shares.product +
    flops.attention / shares.attention +
    flops.attentionDual / shares.attentionDual +
    flops.productBackward / shares.productBackward +
    flops.attentionBackward / shares.attentionBackward) /
  matmulFlops;

/** Weights that are gathered and gradients that are reduced: bytes inside the GPU, and seconds between GPUs. */
function movedBytes({ shape, layout, weightLink }: Setting, { gathered, gradients }: Call) {
  const all = totalOf(shape);
  const trained = trainedParameters(shape);
  const others = (holders(layout) - 1) / holders(layout);
  const copies = replicas(layout);
  const summed = gradients ? trained * 4 * (others + (2 / holders(layout)) * ((copies - 1) / copies)) : 0;
  return {
    inside: all * gatheredBytes[gathered] + (gradients ? trained * gatheredBytes.gradient : 0),
    seconds: (all * shape.computeBytes * others + summed) / weightLink,
  };
}

function updateSeconds({ config, shape, layout, gpu }: Setting): number {
  const { optimizer, ema } = config.student;
  const passes =
    updatePasses.plain +
    (keepsFirstMoment(optimizer) ? updatePasses.firstMoment : 0) +
    (optimizer.clipNorm === null ? 0 : updatePasses.clip) +
    ema.length * updatePasses.average;
  const bytes = (4 * trainedParameters(shape)) / holders(layout);
  const visiting = (keepsFirstMoment(optimizer) ? 2 : 1) + ema.length;
  const offloaded = config.compute.offload === 'none' ? 0 : (visiting * bytes) / hostLinkBytes;
  return (passes * bytes) / (gpu.copyBytes * 0.92) + offloaded;
}
