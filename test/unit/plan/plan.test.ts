import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { listPresets, loadConfig } from '../../../src/config/load.ts';
import type { RcmConfig } from '../../../src/config/types.ts';
import { type Layout, layoutOf, layoutOn, withLayout, worldOf } from '../../../src/plan/layout.ts';
import { gpuNamed, gpuNames, knownGpu } from '../../../src/plan/machines.ts';
import { memoryOf } from '../../../src/plan/memory.ts';
import { makePlan } from '../../../src/plan/plan.ts';
import { timeOf } from '../../../src/plan/time.ts';
import { updatesOf } from '../../../src/plan/workload.ts';

const gpuPresets = listPresets().filter(name => name !== 'digits-rcm');
const configs = new Map<string, RcmConfig>();

beforeAll(async () => {
  for (const name of listPresets()) configs.set(name, (await loadConfig(name, { cwd: '/', env: {} })).config);
});

const configOf = (name: string): RcmConfig => configs.get(name) as RcmConfig;
const h200 = gpuNamed('h200');

/** A preset with any of the settings that memory and time depend on. */
const anyConfig = fc
  .record({
    preset: fc.constantFrom(...gpuPresets),
    mode: fc.constantFrom<RcmConfig['compute']['activationCheckpointing']>('none', 'selective', 'block', 'asymmetric'),
    offload: fc.constantFrom<RcmConfig['compute']['offload']>('none', 'optimizer'),
    lora: fc.option(fc.constantFrom(8, 64), { nil: null }),
    first: fc.constantFrom(0, 0.9),
  })
  .map(({ preset, mode, offload, lora, first }): RcmConfig => {
    const config = configOf(preset);
    const { student } = config;
    const adapters =
      lora === null ? null : { rank: lora, alpha: lora, targets: ['attention' as const, 'ffn' as const] };
    const optimizer = { ...student.optimizer, betas: [first, 0.999] as const };
    return {
      ...config,
      compute: { ...config.compute, activationCheckpointing: mode, offload },
      student: { ...student, lora: adapters, optimizer },
    };
  });

const alone: Layout = { gpusPerNode: 1, nodes: 1, shard: 1, context: 1, batchSize: 1, microBatch: 1 };
const anySize = fc.constantFrom(1, 2, 4, 8);

describe('memory', () => {
  it('grows with the micro-batch, and with the length of a clip', () => {
    fc.assert(
      fc.property(anyConfig, fc.integer({ min: 1, max: 8 }), (config, microBatch) => {
        const of = (size: number): number => memoryOf(config, { ...alone, batchSize: size, microBatch: size }).peak;
        expect(of(microBatch + 1)).toBeGreaterThan(of(microBatch));
        if (!config.model.name.startsWith('wan')) return;
        const longer = { ...config, model: { ...config.model, frames: config.model.frames + 4 } };
        expect(memoryOf(longer, alone).peak).toBeGreaterThan(memoryOf(config, alone).peak);
      }),
    );
  });

  it('never grows when weights or samples are shared by more GPUs', () => {
    fc.assert(
      fc.property(anyConfig, anySize, (config, size) => {
        const one = memoryOf(config, alone);
        const shared = memoryOf(config, { ...alone, gpusPerNode: size, shard: size, batchSize: size });
        expect(shared.peak).toBeLessThanOrEqual(one.peak);
        for (const [role, bytes] of Object.entries(one.weights)) {
          expect(shared.weights[role as 'teacher']).toBeCloseTo(bytes / size, 0);
        }
        expect(shared.averages).toBeCloseTo(one.averages / size, 0);
        const context = memoryOf(config, { ...alone, gpusPerNode: size, context: size });
        expect(context.peak).toBeLessThanOrEqual(one.peak);
      }),
    );
  });

  it('is the sum of its parts, at its fullest moment', () => {
    fc.assert(
      fc.property(anyConfig, anySize, (config, microBatch) => {
        const memory = memoryOf(config, { ...alone, batchSize: microBatch, microBatch });
        const { weights, averages, optimizer, gradients, activations, working, buffers, other } = memory;
        const parts = [...Object.values(weights), averages, optimizer, gradients, activations, working, buffers, other];
        expect(parts.reduce((sum, part) => sum + part, 0)).toBeCloseTo(memory.peak, 0);
        expect(memory.needed).toBeGreaterThan(memory.peak);
      }),
    );
  });

  it('keeps no first moment when betas[0] is 0, no critic without DMD, and less where more is computed again', () => {
    const config = configOf('wan2.1-t2v-1.3b-480p-rcm');
    const { student } = config;
    const optimizer = { ...student.optimizer, betas: [0.9, 0.999] as const };
    const weights = 4 * 1_418_996_800;
    const more = memoryOf({ ...config, student: { ...student, optimizer } }, alone);
    expect(more.optimizer - memoryOf(config, alone).optimizer).toBe(weights);
    expect(memoryOf({ ...config, method: 'scm' }, alone).weights.critic).toBeUndefined();
    const by = (mode: RcmConfig['compute']['activationCheckpointing']): number =>
      memoryOf({ ...config, compute: { ...config.compute, activationCheckpointing: mode } }, alone).activations;
    expect(by('block')).toBeLessThan(by('asymmetric'));
    expect(by('asymmetric')).toBeLessThan(by('selective'));
    expect(by('selective')).toBeLessThan(by('none'));
  });

  it('of adapters is that of one base', () => {
    const config = configOf('wan2.1-t2v-14b-480p-rcm');
    const lora = { rank: 64, alpha: 64, targets: ['attention', 'ffn'] } as const;
    const { weights, averages } = memoryOf({ ...config, student: { ...config.student, lora } }, alone);
    expect(Object.keys(weights)).toEqual(['base', 'student', 'critic']);
    expect(averages).toBe(weights.student);
    expect((weights.student ?? 0) / (weights.base ?? 0)).toBeLessThan(0.1);
  });

  it('rests in main memory with offload', () => {
    const config = configOf('wan2.1-t2v-14b-480p-rcm');
    const away = { ...config, compute: { ...config.compute, offload: 'optimizer' as const } };
    const [here, there] = [memoryOf(config, alone), memoryOf(away, alone)];
    expect(there.offloaded).toBe(here.optimizer + here.averages);
    expect(there.peak).toBeLessThan(here.peak - 0.8 * there.offloaded);
  });
});

describe('time', () => {
  it('does not fall with tokens, and falls with the rate of the GPU', () => {
    fc.assert(
      fc.property(anyConfig, config => {
        const [fast, slow] = [timeOf(config, alone, h200), timeOf(config, alone, gpuNamed('a100'))];
        expect(slow.student.total).toBeGreaterThan(fast.student.total);
        const taller = { ...config, model: { ...config.model, height: config.model.height * 2 } };
        // Equal where the host is the limit.
        expect(timeOf(taller, alone, h200).student.total).toBeGreaterThanOrEqual(fast.student.total);
        const { total, ...parts } = fast.student;
        expect(Object.values(parts).reduce((sum, part) => sum + part, 0)).toBeCloseTo(total, 6);
      }),
    );
  });

  it('of a batch that is dealt out is shorter, but not by more than the number of GPUs', () => {
    fc.assert(
      fc.property(anyConfig, anySize, (config, size) => {
        const one = timeOf(config, { ...alone, batchSize: 8 }, h200).student.total;
        const dealt = { ...alone, gpusPerNode: size, shard: size, batchSize: 8 };
        const many = timeOf(config, dealt, h200).student.total;
        expect(many).toBeLessThanOrEqual(one * 1.0001);
        expect(many * size).toBeGreaterThanOrEqual(one * 0.9);
      }),
    );
  });

  it('counts updates as the sidecar does', () => {
    const digits = configOf('digits-rcm');
    const at = (method: RcmConfig['method'], steps: number) =>
      updatesOf({ ...digits, method, schedule: { ...digits.schedule, steps } });
    // The examples of `updates_after` in py/rcm_sidecar/methods/rcm.py.
    expect(at('rcm', 1050)).toEqual({ warmup: 150, student: 300, critic: 600 });
    expect(at('dmd', 1350)).toEqual({ warmup: 0, student: 450, critic: 900 });
    expect(at('scm', 450)).toEqual({ warmup: 0, student: 450, critic: 0 });
    expect(at('rcm', 100)).toEqual({ warmup: 100, student: 0, critic: 0 });
  });
});

describe('layouts', () => {
  it('divide on any number of GPUs', () => {
    fc.assert(
      fc.property(fc.constantFrom(...gpuPresets), fc.integer({ min: 1, max: 8 }), anySize, (name, gpus, nodes) => {
        const layout = layoutOn(layoutOf(configOf(name)), gpus, nodes);
        const { shard, context, batchSize, microBatch } = layout;
        const ranks = worldOf(layout) / context;
        expect(worldOf(layout) % (shard * context)).toBe(0);
        expect(Number.isInteger(batchSize / ranks / microBatch)).toBe(true);
        expect(batchSize).toBeGreaterThanOrEqual(configOf(name).schedule.batchSize);
      }),
    );
  });
});

describe('a plan', () => {
  it.each(gpuPresets)('of %s fits on the GPUs it was written for', name => {
    const { gpusPerNode, nodes } = configOf(name).compute;
    const plan = makePlan(configOf(name), { gpu: gpuNamed('h100'), gpusPerNode, nodes });
    expect(plan.fits, plan.text).toBe(true);
    expect(plan.changed).toEqual({});
    expect(plan.fewest?.gpus).toBeLessThanOrEqual(gpusPerNode * nodes);
    expect(plan.summary).toMatch(/^plan {2}\d+ x NVIDIA H100 80GB.*GPU-hours\), estimated from public rates$/);
  });

  it('offers changes that fit, and they do', () => {
    fc.assert(
      fc.property(anyConfig, fc.constantFrom(...gpuNames), anySize, (config, name, gpusPerNode) => {
        const machine = { gpu: gpuNamed(name), gpusPerNode, nodes: 1 };
        const plan = makePlan(config, machine);
        const { memoryBytes } = machine.gpu;
        if (plan.fits) expect(plan.changes).toEqual([]);
        for (const { needed } of plan.changes) expect(needed).toBeLessThanOrEqual(memoryBytes);
        if ((plan.largestBatch ?? 0) === 0) return;
        const { replicate: _replicate, ...layout } = plan.layout;
        const ranks = worldOf(layout) / layout.context;
        const most = {
          ...layout,
          batchSize: plan.largestBatch as number,
          microBatch: (plan.largestBatch ?? 0) / ranks,
        };
        expect(memoryOf(withLayout(config, most), most).needed).toBeLessThanOrEqual(memoryBytes);
      }),
      { numRuns: 40 },
    );
  });

  it('says nothing of memory and time for a run on the CPU', () => {
    const plan = makePlan(configOf('digits-rcm'), null);
    expect(plan).toMatchObject({ machine: null, memory: null, time: null, fits: true, changes: [] });
    expect(plan.data).toMatchObject({ drawn: 1050 * 128, buildHoursPerThousand: null });
  });
});

it('GPUs are known by what nvidia-smi calls them', () => {
  expect(knownGpu('NVIDIA H200')?.name).toBe('h200');
  expect(knownGpu('NVIDIA H100 80GB HBM3')?.name).toBe('h100');
  expect(knownGpu('NVIDIA A100-SXM4-80GB')?.name).toBe('a100');
  expect(knownGpu('NVIDIA A100-SXM4-40GB')).toBeUndefined();
  expect(knownGpu('NVIDIA GeForce RTX 4090')?.name).toBe('4090');
  expect(knownGpu('NVIDIA L40S')?.name).toBe('l40s');
  expect(knownGpu('NVIDIA GeForce RTX 3060')).toBeUndefined();
});
