/** The model of memory and time against what was measured on one H200: docs/results/network.md. */
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
    expect(studentCall).toBeGreaterThan(0.0965);
    expect(studentCall).toBeLessThan(0.0965 * 1.3);
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
    expectWithin(1e3 * (student.total - student.draws), 3402, 0.03);
    expectWithin(1e3 * student.teacher, 945.4, 0.05);
    expectWithin(1e3 * student.forward, 1076.5, 0.05);
    expectWithin(1e3 * student.update, 33.4, 0.15);
  });
});

function expectWithin(value: number, wanted: number, share: number): void {
  expect(value, `${value.toPrecision(4)} should be ${wanted}`).toBeGreaterThan(wanted * (1 - share));
  expect(value, `${value.toPrecision(4)} should be ${wanted}`).toBeLessThan(wanted * (1 + share));
}
