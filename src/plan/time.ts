/** Seconds of a step: FLOPs over measured rates, bytes over bandwidth, and what the host takes to launch it all. */
import type { RcmConfig } from '../config/types.ts';
import { backwardFlops, type CallFlops, callFlops, times } from './flops.ts';
import { accumulation, holders, type Layout, replicas, teacherCalls } from './layout.ts';
import { type Gpu, networkBytes } from './machines.ts';
import { unitBytes } from './memory.ts';
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
  /** Random numbers, drawn on the CPU for the whole batch while the GPU waits. */
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
 * Host time of a block. `value` and `dual` were measured where the host was the limit: Cosmos-Predict2 2B at 4,080 tokens
 * takes 96.5 and 170 ms for 28 blocks (docs/results/network.md). The others are estimates: a graph is recorded besides,
 * autograd calls back into Python for each fused kernel, FSDP gathers each block, an adapter adds four launches a layer.
 */
const hostSeconds = { value: 96.5e-3 / 28, dual: 170e-3 / 28, backward: 5e-3, fsdp: 0.5e-3 } as const;
const hostFactor = { recorded: 1.25, adapted: 1.9 } as const;

/**
 * Backward of the elementwise kernels over their forward: 40 ms over 23 for Wan2.1 1.3B, and 60 with the bias gradients,
 * which frozen weights do not have.
 */
const elementwiseBackward = { trained: 2.6, frozen: 1.75 } as const;
/**
 * Passes over the results of the layers with adapters: two thin products, a multiple, a sum, and what backward reads and
 * writes. Counted from the code, not measured.
 */
const adapterPasses = { forward: 7, backward: 9 } as const;
/** Bytes a parameter moves within the GPU: cast and copied when gathered, its gradient cast, copied and added. */
const gatheredBytes = { trained: 10, frozen: 8, gradient: 18 } as const;
/** float32 tensors that an update reads and writes; with a first moment, clipping, and for each average. */
const updatePasses = { plain: 18, firstMoment: 3, clip: 2, average: 3 } as const;
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
    draws: loss.noises * layout.batchSize * shape.latentSize * drawSeconds,
  };
  return { ...parts, total: Object.values(parts).reduce((sum, part) => sum + part, 0) };
}

/** The teacher's velocity of a micro-batch, with guidance. */
function teacher(setting: Setting): number {
  const { calls, batches } = teacherCalls(setting.config, setting.layout);
  const call = callSeconds(setting, {
    flops: times(callFlops(setting.shape, 'value', false), batches),
    elementwise: batches,
    adapters: 0,
    exchanged: 4 * batches,
    gathered: 'frozen',
    host: hostOf(setting, 'value', false, 1),
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
    adapters: adapted ? adapterPasses.forward : 0,
    exchanged: 4,
    gathered: adapted ? 'frozen' : 'trained',
    host: hostOf(setting, 'value', adapted, 1),
  });
}

/** A student or critic call with gradient. */
function recorded(setting: Setting, kind: 'value' | 'dual'): number {
  const adapted = isAdapted(setting);
  const doubled = kind === 'dual' ? 2 : 1;
  return callSeconds(setting, {
    flops: callFlops(setting.shape, kind, adapted),
    elementwise: doubled,
    adapters: adapted ? doubled * adapterPasses.forward : 0,
    exchanged: 4 * doubled,
    gathered: adapted ? 'frozen' : 'trained',
    host: hostOf(setting, kind, adapted, hostFactor.recorded),
  });
}

function backward(setting: Setting): number {
  const mode = setting.config.compute.activationCheckpointing;
  const adapted = isAdapted(setting);
  const again = mode === 'none' ? 0 : 1;
  const adaptedFactor = adapted ? hostFactor.adapted : 1;
  return callSeconds(setting, {
    flops: backwardFlops(setting.shape, mode),
    elementwise: elementwiseBackward[adapted ? 'frozen' : 'trained'] + again,
    adapters: adapted ? adapterPasses.backward + again * adapterPasses.forward : 0,
    exchanged: 8 + (mode === 'block' ? 4 : 0),
    gathered: adapted ? 'frozen' : 'trained',
    gradients: true,
    host:
      setting.shape.layers * hostSeconds.backward * adaptedFactor +
      again * hostOf(setting, 'value', adapted, hostFactor.recorded),
  });
}

const hostOf = ({ shape }: Setting, kind: 'value' | 'dual', adapted: boolean, factor: number): number =>
  shape.layers * (hostSeconds[kind] * factor * (adapted ? hostFactor.adapted : 1) + hostSeconds.fsdp);

interface Call {
  /** Of one sample. */
  readonly flops: CallFlops;
  /** Elementwise work over that of a value's forward. */
  readonly elementwise: number;
  /** Passes over the results of the layers with adapters. */
  readonly adapters: number;
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
  const wide = (lora?.layers ?? []).filter(({ rows }) => rows === 'tokens').reduce((sum, { to }) => sum + to, 0);
  return elementwise * (19 + 2 * hidden) + (adapters * wide) / dim;
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
