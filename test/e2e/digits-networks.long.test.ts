import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';

const runMs = 60 * 60_000; // minutes on two quiet cores; a busy machine takes several times that

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});

afterAll(() => folder.remove());

const set = (pairs: readonly string[]): readonly string[] => pairs.flatMap(pair => ['--set', pair]);

/** Exit 0 says that every gate of the default config is met. */
async function meetsGates(words: readonly string[]): Promise<void> {
  const done = await runCli([...words, '--json'], { cwd: folder.path, timeoutMs: runMs });
  expect(done.code, done.stderr).toBe(0);
  expect(JSON.parse(done.stdout)).toMatchObject({ state: 'succeeded' });
}

/** As in docs/results/cosmos-digits.md and docs/results/lora.md. */
describe('the quality gates of the embedded default', () => {
  it(
    'are met with Cosmos-Predict2 in the place of Wan2.1',
    async () => {
      const cosmos = ['model.name=cosmos-predict2-tiny', 'model.overrides.ffnDim=null', 'model.overrides.freqDim=null'];
      await meetsGates(['pretrain', '--run-dir', './teacher', ...set(cosmos)]);
      const weights = `teacher.weights=${join(folder.path, 'teacher', 'export', 'official')}`;
      const rate = 'student.optimizer.learningRate=1.0e-4';
      const distilled = ['distill', '--run-dir', './student', ...set([...cosmos, weights, rate])];
      await meetsGates(distilled);
    },
    2 * runMs,
  );

  it(
    'are met with LoRA',
    async () => {
      const lora = 'student.lora={ rank: 32, alpha: 32, targets: [attention, ffn] }';
      const rates = ['student.optimizer.learningRate=3.0e-3', 'critic.optimizer.learningRate=2.0e-3'];
      await meetsGates(['distill', '--run-dir', './lora', ...set([lora, ...rates])]);
    },
    runMs,
  );
});
