/** The model of memory and time against what was measured on one H200: docs/results/network.md and paper-runs.md. */
import { describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import type { RcmConfig } from '../../../src/config/types.ts';
import { backwardFlops, type CallFlops, callFlops, sumOf } from '../../../src/plan/flops.ts';
import { layoutOf } from '../../../src/plan/layout.ts';
import { gpuNamed } from '../../../src/plan/machines.ts';
import { memoryOf, unitBytes, unitsOf } from '../../../src/plan/memory.ts';
import { timeOf } from '../../../src/plan/time.ts';
import { type Checkpointing, networkShape, totalOf } from '../../../src/plan/workload.ts';

const alone = {
  'compute.gpusPerNode': 1,
  'compute.nodes': 1,
  'compute.parallel.shard': 1,
  'compute.parallel.context': 1,
  'schedule.batchSize': 1,
  'schedule.microBatchSize': 1,
};

async function measured(network: string, set: Readonly<Record<string, unknown>> = {}): Promise<RcmConfig> {
  const preset = network.startsWith('wan') ? 'wan2.1-t2v-1.3b-480p-rcm' : 'cosmos-predict2-t2i-2b-rcm';
  const changes = { ...alone, 'model.name': network, ...set };
  return (await loadConfig(preset, { cwd: '/', env: {}, set: changes })).config;
}

const wan = 'wan2.1-t2v-1.3b';
const gb = 1e9;

/** Libraries and inputs: what the model adds to every peak. */
const around = 0.2 * gb;

async function network(name: string, set: Readonly<Record<string, unknown>> = {}) {
  const config = await measured(name, set);
  const shape = networkShape(config);
  const unit = unitBytes(shape, layoutOf(config));
  const weights = 2 * totalOf(shape) + 2 * shape.parameters.wide;
  return { shape, unit, weights };
}

describe('peak memory', () => {
  it.each([
    [wan, {}, 4.6, 6.1],
    ['wan2.1-t2v-14b', {}, 32.4, 35.5],
    ['cosmos-predict2-t2i-2b', {}, 4.2, 4.4],
    ['cosmos-predict2-t2i-14b', {}, 29.3, 29.8],
  ])('of a forward of %s, plain and dual', async (name, set, plain, dual) => {
    const { shape, unit, weights } = await network(name, set);
    const working = unitsOf(shape, 'block', false).plain * unit;
    // `around` is a little large for the small latents of Cosmos.
    expectWithin((weights + working + around) / gb, plain, 0.04);
    expectWithin((weights + 2 * working + around) / gb, dual, 0.04);
  });

  it('of one block of Wan2.1 14B, dual', async () => {
    const { shape, unit, weights } = await network('wan2.1-t2v-14b', { 'model.overrides.numLayers': 1 });
    expectWithin((weights + 2 * unitsOf(shape, 'block', false).plain * unit + around) / gb, 7.6, 0.03);
  });

  it.each<[Checkpointing, number]>([
    ['none', 87.4],
    ['block', 9.2],
    ['asymmetric', 14.9],
  ])('of a dual forward and backward of Wan2.1 1.3B, %s', async (mode, peak) => {
    const { shape, unit, weights } = await network(wan);
    const units = unitsOf(shape, mode, false);
    // The row's gradients are bf16 and grow while the kept activations go: either end of backward.
    const kept = shape.layers * units.kept * unit;
    const forward = kept + (mode === 'none' ? 1 : 2) * units.plain * unit;
    const start = kept + units.backward * unit;
    const end = weights + units.kept * unit + units.backward * unit;
    expectWithin((weights + Math.max(forward, start, end) + around) / gb, peak, 0.03);
  });

  it('of a whole student update: teacher, float32 student with its second moment', async () => {
    const config = await measured(wan, {
      method: 'scm',
      'student.ema': [],
      'evaluation.network': 'student',
      'compute.activationCheckpointing': 'asymmetric',
    });
    expectWithin(memoryOf(config, layoutOf(config)).peak / gb, 26.5, 0.03);
  });
});

describe('FLOPs', () => {
  it('are those the counter saw in a plain forward of Wan2.1 1.3B, but for embedding and head', async () => {
    const { shape } = await network(wan);
    expectWithin(sumOf(callFlops(shape, 'value', false)) / 1e12, 260.6, 0.001);
  });
});

/** Milliseconds of kernels alone, as the profiled rows have them. */
async function kernelMs(name: string, kind: 'value' | 'dual', backward: Checkpointing | null = null): Promise<number> {
  const { shape, unit } = await network(name);
  const gpu = gpuNamed('h200');
  const calls: CallFlops[] = [callFlops(shape, kind, false)];
  if (backward) calls.push(backwardFlops(shape, backward));
  const seconds = calls.reduce((sum, flops) => sum + flopSeconds(flops), 0);
  const passes = (kind === 'dual' ? 2 : 1) + (backward ? 2.6 + (backward === 'none' ? 0 : 1) : 0);
  const elementwise = (shape.layers * passes * (19 + 2 * shape.hidden) * unit) / gpu.shares.elementwise / gpu.copyBytes;
  return 1e3 * (seconds + elementwise);

  function flopSeconds(flops: CallFlops): number {
    const { shares, matmulFlops } = gpu;
    const kinds = Object.keys(flops) as (keyof CallFlops)[];
    return kinds.reduce((sum, key) => sum + flops[key] / shares[key], 0) / matmulFlops;
  }
}

describe('times', () => {
  it.each<[string, 'value' | 'dual', Checkpointing | null, number]>([
    [wan, 'value', null, 475.8],
    [wan, 'dual', null, 1075],
    [wan, 'value', 'block', 2153],
    [wan, 'dual', 'none', 2277],
    [wan, 'dual', 'block', 2753],
    [wan, 'dual', 'asymmetric', 2417],
    ['wan2.1-t2v-14b', 'value', null, 2558],
    ['wan2.1-t2v-14b', 'dual', null, 5760],
    ['cosmos-predict2-t2i-14b', 'value', null, 194.7],
    ['cosmos-predict2-t2i-14b', 'dual', null, 401.4],
  ])('of %s, %s, backward %s', async (name, kind, backward, ms) => {
    expectWithin(await kernelMs(name, kind, backward), ms, 0.05);
  });

  it('of kernels that wait for the host', async () => {
    expectWithin(await kernelMs('cosmos-predict2-t2i-2b', 'value'), 30, 0.06);
    expectWithin(await kernelMs('cosmos-predict2-t2i-2b', 'dual'), 62, 0.06);
    const config = await measured('cosmos-predict2-t2i-2b');
    const { studentCall } = timeOf(config, layoutOf(config), gpuNamed('h200'));
    // 96.5 ms there, without FSDP and on another host; 120 ms and 27 ms of FSDP's hooks in paper-runs.md.
    expectWithin(studentCall, 0.147, 0.02);
  });

  it('of a whole student update', async () => {
    const config = await measured(wan, {
      method: 'scm',
      'student.ema': [],
      'evaluation.network': 'student',
      'student.optimizer.clipNorm': 1,
      'compute.activationCheckpointing': 'asymmetric',
    });
    const { student } = timeOf(config, layoutOf(config), gpuNamed('h200'));
    expectWithin(1e3 * student.total, 3402, 0.03);
    expectWithin(1e3 * student.teacher, 945.4, 0.05);
    expectWithin(1e3 * student.forward, 1076.5, 0.05);
    // The row's update went over memory in passes, 33.4 ms; the fused kernel is counted, not measured.
    expect(1e3 * student.update).toBeLessThan(33.4 / 2);
  });
});

/** docs/results/paper-runs.md, runs of ten steps through the command line, with the update in passes. */
interface PaperRun {
  readonly name: string;
  readonly network: string;
  readonly set: Readonly<Record<string, unknown>>;
  readonly peakGb: number;
  readonly warmup: number;
  /** Rollouts of three and four calls. */
  readonly student: readonly [number, number];
  /** Rollouts of 1, 2, 3, 4, and again of 1 and 2 calls where there were ten steps. */
  readonly critic: readonly number[];
}

const lora = { rank: 64, alpha: 64, targets: ['attention', 'ffn'] };
const cosmos = 'cosmos-predict2-t2i-2b';
const eight = { 'schedule.batchSize': 8, 'schedule.microBatchSize': 8 };
const paperRuns: readonly PaperRun[] = [
  {
    name: 'Wan2.1 1.3B',
    network: wan,
    set: {},
    peakGb: 43.66,
    warmup: 3.73,
    student: [8.45, 8.77],
    critic: [2.7, 3.17, 3.65, 4.21, 2.67, 3.17],
  },
  {
    name: 'Wan2.1 1.3B with LoRA',
    network: wan,
    set: { 'student.lora': lora },
    peakGb: 17.51,
    warmup: 4.1,
    student: [9.39, 9.95],
    critic: [3.12, 3.67, 4.32, 4.9, 3.04, 3.66],
  },
  {
    name: 'Wan2.1 1.3B, 81 frames',
    network: wan,
    set: { 'model.frames': 81 },
    peakGb: 43.96,
    warmup: 4.02,
    student: [8.97, 9.42],
    critic: [2.87, 3.4, 3.92, 4.43],
  },
  {
    name: 'Cosmos-Predict2 2B',
    network: cosmos,
    set: {},
    peakGb: 58.84,
    warmup: 1,
    student: [2.28, 2.09],
    critic: [0.74, 0.81, 1.09, 1.41, 0.74, 0.96],
  },
  {
    name: 'Cosmos-Predict2 2B, batch 8',
    network: cosmos,
    set: eight,
    peakGb: 107.37,
    warmup: 1.7,
    student: [3.92, 4.13],
    critic: [1.22, 1.42, 1.71, 1.98, 1.17, 1.43],
  },
];

describe("the paper's runs", () => {
  it.each(paperRuns)('$name', async ({ network: name, set, peakGb, warmup, student, critic }) => {
    const config = await measured(name, { 'losses.scm.tangentWarmupUpdates': 2, ...set });
    const layout = layoutOf(config);
    expectWithin(memoryOf(config, layout).peak / gb, peakGb, 0.02);
    const time = timeOf(config, layout, gpuNamed('h200'));
    expectWithin(time.warmup?.total ?? 0, warmup, 0.2);
    student.forEach((seconds, index) => {
      expectWithin(time.student.total + (index + 0.5) * time.rolloutCall, seconds, 0.16);
    });
    critic.forEach((seconds, index) => {
      expectWithin((time.critic?.total ?? 0) + ((index % 4) - 1.5) * time.rolloutCall, seconds, 0.16);
    });
  });
});

function expectWithin(value: number, wanted: number, share: number): void {
  expect(value, `${value.toPrecision(4)} should be ${wanted}`).toBeGreaterThan(wanted * (1 - share));
  expect(value, `${value.toPrecision(4)} should be ${wanted}`).toBeLessThan(wanted * (1 + share));
}
