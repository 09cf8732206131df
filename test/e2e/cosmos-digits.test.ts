import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { onlyRun, readJson } from '../run-files.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});

afterAll(() => folder.remove());

/** The default config with the other network; `null` removes what only Wan has. */
const cosmos = ['model.name=cosmos-predict2-tiny', 'model.overrides.ffnDim=null', 'model.overrides.freqDim=null'];
const lora = 'student.lora={ rank: 4, alpha: 8, targets: [attention, ffn] }';

const set = (pairs: readonly string[]): readonly string[] => pairs.flatMap(pair => ['--set', pair]);

describe('Cosmos-Predict2 on digits', () => {
  it('pretrains a teacher, distils it with LoRA and draws samples', async () => {
    const pretrain = ['pretrain.steps=4', 'pretrain.batchSize=16', 'teacher.sampler.steps=2'];
    const gate = 'evaluation.gates=[{ metric: accuracy, steps: 1, atLeast: 1.5 }]';
    const words = ['--runs-dir', 'teacher', ...quickRun(1), ...set([...cosmos, ...pretrain, gate]), '--json'];
    const taught = await runCli(['pretrain', ...words], { cwd: folder.path });
    expect(taught.code, taught.stderr).toBe(0);
    // Without a student there is nothing to judge.
    expect(JSON.parse(taught.stdout)).toMatchObject({ schema: 1, exitCode: 0, scorecard: { gates: [] } });
    const weights = join(onlyRun(join(folder.path, 'teacher')), 'export', 'official');

    const student = [lora, `teacher.weights=${weights}`];
    const distill = ['distill', '--run-dir', './lora', ...quickRun(4), ...set([...cosmos, ...student])];
    const done = await runCli(distill, { cwd: folder.path });
    expect(done.code, done.stderr).toBe(0);
    const runDir = join(folder.path, 'lora');
    expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'succeeded', progress: { studentUpdates: 3 } });
    expect(readdirSync(join(runDir, 'export')).sort()).toEqual(['diffusers', 'lora', 'official']);
    expect(readdirSync(join(runDir, 'export', 'lora')).sort()).toEqual([
      'README.md',
      'comfyui.safetensors',
      'official.safetensors',
    ]);

    const sampled = await runCli(['sample', './lora', '--num', '4', '--steps', '1'], { cwd: folder.path });
    expect(sampled.code, sampled.stderr).toBe(0);
  });
});
