import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import type { RunStart, SidecarEvent } from '../../../src/protocol/messages.ts';
import { openBridge } from '../../../src/runs/bridge.ts';
import { writeStoredConfig } from '../../../src/runs/config-file.ts';
import type { Launcher } from '../../../src/runs/launchers/launcher.ts';
import type { SampleOptions, SampleResult } from '../../../src/runs/options.ts';
import { thisOwner } from '../../../src/runs/owner.ts';
import { writeRecord } from '../../../src/runs/record.ts';

let cwd = '';
beforeAll(async () => {
  cwd = mkdtempSync(join(tmpdir(), 'rcm-sample-'));
  const weights = (folder: string, sampler?: object): void => {
    mkdirSync(join(cwd, folder), { recursive: true });
    writeFileSync(join(cwd, folder, 'model.safetensors'), 'x');
    if (sampler) writeFileSync(join(cwd, folder, 'sampler.json'), JSON.stringify(sampler));
  };
  weights('download');
  weights('encoders');
  weights('student', { kind: 'student', conditioner: null });
  weights('labels', { kind: 'teacher', conditioner: 'conditioner.safetensors', sampler: { steps: 7 } });
  weights('runs/wan-run/export/official', { kind: 'student', conditioner: null });
  const set = {
    'model.path': 'encoders',
    'teacher.weights': 'download',
    'teacher.guidance': 3,
    'model.overrides.dim': 1024,
    'model.overrides.numHeads': 8,
  };
  const dir = join(cwd, 'runs', 'wan-run');
  writeStoredConfig(dir, await loadConfig('wan2.1-t2v-1.3b-480p-rcm', { cwd, env: {}, set }));
  const now = new Date().toISOString();
  writeRecord(dir, {
    id: 'wan-run',
    job: 'distill',
    state: 'succeeded',
    attempt: 1,
    owner: thisOwner(),
    heartbeat: now,
    times: { created: now, started: now, ended: now },
    progress: { step: 1, steps: 1, studentUpdates: 1, criticUpdates: 0 },
    exitCode: 0,
    error: null,
    smoke: false,
  });
});
afterAll(() => rmSync(cwd, { recursive: true, force: true }));

const drawn = { prompt: 'a cat', seed: 5, steps: 2, frames: 1, height: 16, width: 32, seconds: 0.5 };

interface Sampled {
  readonly start: RunStart;
  readonly needs: readonly string[];
  readonly result: SampleResult;
  readonly notices: readonly string[];
}

/** What a sidecar would be asked for; it answers with one picture. */
async function sample(weights: string, options: SampleOptions): Promise<Sampled> {
  let start: RunStart | undefined;
  let needed: readonly string[] = [];
  const notices: string[] = [];
  const launch: Launcher = async ({ onEvent }) => ({
    pid: 1,
    ready: {} as never,
    exited: new Promise(() => undefined),
    request: async (_type: unknown, body: unknown) => {
      start = body as RunStart;
      const event = (type: string, content: object) => onEvent({ type, body: content } as unknown as SidecarEvent);
      await event('log', { level: 'warn', message: 'memory was short', fields: {} });
      await event('progress', { step: 1, steps: 2, phase: 'sampling', values: {} });
      await event('rendered', { path: '/out/a-cat.png', ...drawn });
      void event('end', { state: 'succeeded', blobs: 0, error: null });
      return {};
    },
    stop: async () => undefined as never,
    kill: () => undefined,
  });
  const findPython = async (_signal: unknown, needs: readonly string[] = []) => {
    needed = needs;
    return { executable: 'python3', version: '3.11.0', packages: {} };
  };
  const onNotice = (notice: string): unknown => notices.push(notice);
  const bridge = await openBridge({ cwd, env: { RCM_BRIDGE_HOME: cwd }, onNotice }, { launch, findPython });
  const result = await bridge.sample(weights, options);
  if (!start) throw new Error('nothing was started');
  return { start, needs: needed, result, notices };
}

const refusal = (weights: string, options: SampleOptions): Promise<unknown> =>
  sample(weights, options).then(
    () => undefined,
    (error: unknown) => error,
  );

describe('pictures of prompts', () => {
  it('of an export are asked for with what it says itself', async () => {
    const seen: unknown[] = [];
    const options = { prompt: 'a cat', out: 'there', onProgress: (shown: unknown) => seen.push(shown) };
    const { start, needs, result, notices } = await sample('./student', options);
    expect(start).toEqual({
      job: 'render',
      source: join(cwd, 'student'),
      encoders: null,
      network: null,
      teacher: false,
      teacherSampler: null,
      prompts: ['a cat'],
      num: 1,
      seed: 0,
      steps: null,
      frames: null,
      height: null,
      width: null,
      device: 'auto',
      outDir: join(cwd, 'there'),
      cacheDir: join(cwd, 'cache'),
    });
    expect(needs).toEqual(['diffusers', 'transformers', 'av', 'ftfy']);
    expect(result).toEqual({
      files: ['/out/a-cat.png'],
      out: join(cwd, 'there'),
      steps: 2,
      seed: 0,
      samples: [{ file: '/out/a-cat.png', ...drawn }],
    });
    expect(notices).toEqual(['memory was short']);
    expect(seen).toEqual([{ phase: 'sampling', done: 1, total: 2, bytes: 0 }]);
  });

  it('of a run use the encoders of its model', async () => {
    const { start } = await sample('wan-run', { prompts: ['a cat', 'a mat'], num: 2, seed: 7, steps: 1 });
    expect(start).toMatchObject({
      source: join(cwd, 'runs', 'wan-run', 'export', 'official'),
      encoders: join(cwd, 'encoders'),
      network: null,
      prompts: ['a cat', 'a mat'],
      num: 2,
      seed: 7,
      steps: 1,
    });
  });

  it('of a run whose model moved look beside the weights', async () => {
    renameSync(join(cwd, 'encoders'), join(cwd, 'moved'));
    expect((await sample('wan-run', { prompt: 'a cat' })).start).toMatchObject({ encoders: null });
    renameSync(join(cwd, 'moved'), join(cwd, 'encoders'));
  });

  it("of a run's teacher are drawn as its config says", async () => {
    const { start } = await sample('wan-run', { prompt: 'a cat', teacher: true, frames: 5, encoders: './student' });
    expect(start).toMatchObject({
      source: join(cwd, 'download'),
      encoders: join(cwd, 'student'),
      network: { name: 'wan2.1-t2v-1.3b', overrides: { dim: 1024, numHeads: 8 } },
      teacher: true,
      teacherSampler: { kind: 'unipc', steps: 50, shift: 5, guidance: 3, negative: 'default' },
      steps: null,
      frames: 5,
      height: 480,
      width: 832,
    });
  });

  it('of a download need to be told what it is', async () => {
    expect(await refusal('download', { prompt: 'a cat' })).toMatchObject({
      code: 'E_USAGE',
      hint: expect.stringContaining('--teacher'),
    });
    expect((await sample('download', { prompt: 'a cat', steps: 4 })).start).toMatchObject({ teacher: false, steps: 4 });
    expect((await sample('download', { prompt: 'a cat', teacher: true })).start).toMatchObject({
      teacher: true,
      teacherSampler: null,
      network: null,
    });
  });

  it.each<[string, SampleOptions, string]>([
    ['labels', { prompt: 'a seven' }, 'E_USAGE'],
    ['labels', { frames: 5 }, 'E_USAGE'],
    ['student', { label: 3 }, 'E_USAGE'],
    ['student', {}, 'E_USAGE'],
    ['student', { prompt: 'a cat', label: 3 }, 'E_USAGE'],
    ['student', { prompts: ['a cat', ' '] }, 'E_USAGE'],
    ['student', { prompt: 'a cat', encoders: 'nowhere' }, 'E_WEIGHTS_NOT_FOUND'],
    ['student', { prompt: 'a cat', encoders: 'hf:nobody/nothing' }, 'E_WEIGHTS_NOT_FOUND'],
    ['./download', {}, 'E_WEIGHTS_SAMPLER'],
    ['nowhere', { prompt: 'a cat' }, 'E_RUN_NOT_FOUND'],
  ])('%s with %j are refused', async (weights, options, code) => {
    expect(await refusal(weights, options)).toMatchObject({ code });
  });

  it('leave labels as they are', async () => {
    const { start, needs } = await sample('labels', { label: 3 });
    expect(start).toMatchObject({ job: 'sample', steps: 7, num: 10, label: 3 });
    expect(needs).toEqual([]);
  });
});
