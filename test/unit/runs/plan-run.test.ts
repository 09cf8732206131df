import { beforeAll, describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import type { RcmConfig } from '../../../src/config/types.ts';
import { isRcmBridgeError } from '../../../src/errors/index.ts';
import type { BridgeContext } from '../../../src/runs/context.ts';
import { checkPlan, type PlanOptions, planConfig } from '../../../src/runs/plan-run.ts';

const wan = 'wan2.1-t2v-1.3b-480p-rcm';
const set = { 'compute.gpusPerNode': 1, 'compute.parallel.shard': 1, 'schedule.batchSize': 1 };
const gpus =
  (...names: readonly string[]) =>
  () =>
    Promise.resolve(names);

let one: RcmConfig;
beforeAll(async () => {
  one = (await loadConfig(wan, { cwd: '/', env: {}, set })).config;
});

describe('before a run', () => {
  const check = async (config: RcmConfig, ignore: boolean, ...found: readonly string[]) => {
    const said: string[] = [];
    await checkPlan({ notice: text => said.push(text) }, config, ignore, gpus(...found));
    return said;
  };

  it('says in one line what it takes', async () => {
    const [line, ...more] = await check(one, false, 'NVIDIA H200');
    expect(line).toMatch(
      /^plan {2}1 x NVIDIA H200: [\d.]+ of 150 GB a GPU; student .+, critic .+ a step; .+ GPU-hours\)$/,
    );
    expect(more).toEqual([]);
  });

  it('refuses what does not fit, with a change that does, unless told to go on', async () => {
    const error = await check(one, false, 'NVIDIA GeForce RTX 4090').catch((reason: unknown) => reason);
    if (!isRcmBridgeError(error)) throw error;
    expect(error).toMatchObject({ code: 'E_GPU_MEMORY', exitCode: 3 });
    expect(error.message).toMatch(/^Each GPU needs \d+ GB and has 25 GB\.$/);
    expect(error.hint).toMatch(/^It fits with --set student\.lora=.*--ignore-plan/);
    const said = await check(one, true, 'NVIDIA GeForce RTX 4090');
    expect(said).toEqual([expect.stringContaining('does not fit')]);
  });

  it('is silent on a CPU and on GPUs it knows nothing of', async () => {
    const digits = (await loadConfig('digits-rcm', { cwd: '/', env: {} })).config;
    expect(await check(digits, false, 'NVIDIA H200')).toEqual([]);
    expect(await check(one, false, 'NVIDIA GeForce RTX 3060')).toEqual([]);
    expect(await check(one, false)).toEqual([]);
  });
});

describe('bridge.plan', () => {
  const plan = async (source: string, options: PlanOptions, ...found: readonly string[]) => {
    const said: string[] = [];
    const context = { cwd: '/', env: {}, options: {}, notice: (text: string) => said.push(text) };
    return { said, ...(await planConfig(context as unknown as BridgeContext, source, options, gpus(...found))) };
  };

  it('is for the GPUs of this machine, fewer if it has fewer', async () => {
    const { machine, layout, changed, said } = await plan(wan, {}, 'NVIDIA H200', 'NVIDIA H200');
    expect(machine).toMatchObject({ gpu: 'h200', gpusPerNode: 2, nodes: 1, measured: true });
    expect(layout).toMatchObject({ shard: 2, replicate: 1, batchSize: 8, microBatch: 1 });
    expect(changed).toEqual({ 'compute.gpusPerNode': 2, 'compute.parallel.shard': 2 });
    expect(said).toEqual([]);
  });

  it('is for the GPUs that are named, whatever is here', async () => {
    const { machine } = await plan('wan2.1-t2v-14b-480p-rcm', { gpu: 'a100', gpus: 8 }, 'NVIDIA H200');
    expect(machine).toMatchObject({ gpu: 'a100', gpusPerNode: 8, nodes: 1, measured: false });
    const cluster = await plan('wan2.1-t2v-14b-480p-rcm', { gpu: 'a100' });
    expect(cluster.machine).toMatchObject({ gpusPerNode: 8, nodes: 4 });
  });

  it('takes a number of GPUs as `distill` does where it divides, and says what has to change where it does not', async () => {
    const { changed } = await plan(wan, { gpu: 'h200', gpus: 1 });
    expect(changed).toMatchObject({ 'compute.parallel.shard': 1 });
    const alone = await plan(wan, {
      gpu: 'h200',
      gpus: 1,
      set: { ...set, 'compute.gpusPerNode': 8, 'schedule.batchSize': 8 },
    });
    expect(alone.changed).toEqual({});
    await expect(plan(wan, { gpu: 'h200', gpus: 1, set: ['schedule.batchSize=1'] })).rejects.toMatchObject({
      code: 'E_CONFIG_VALUE',
      message: expect.stringContaining('shard 4'),
    });
  });

  it('is for what the presets were written for where there is no GPU, and says so', async () => {
    const { machine, said } = await plan(wan, {});
    expect(machine).toMatchObject({ gpu: 'h100', gpusPerNode: 8 });
    expect(said).toEqual([expect.stringMatching(/^There is no GPU here: planned for NVIDIA H100 80GB\./)]);
    const strange = await plan(wan, {}, 'NVIDIA GeForce RTX 3060');
    expect(strange.said).toEqual([expect.stringMatching(/^No facts are known of the NVIDIA GeForce RTX 3060/)]);
  });

  it('knows the GPUs it knows', async () => {
    await expect(plan(wan, { gpu: 'b300' as 'h200' })).rejects.toMatchObject({
      code: 'E_USAGE',
      hint: expect.stringContaining('h200, h100, a100, l40s, 4090'),
    });
  });
});
