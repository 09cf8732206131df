import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PNG } from 'pngjs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { type CliResult, runCli, temporaryFolder } from '../cli.ts';
import { testPython } from '../python.ts';
import { pythonWithDevTools } from '../python-with-dev-tools.ts';

// Whole models with tiny random weights, in the folders that `weights fetch --with-encoders` brings.
let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let env: NodeJS.ProcessEnv = {};
beforeAll(async () => {
  folder = await temporaryFolder();
  env = { RCM_BRIDGE_PYTHON: pythonWithDevTools(join(folder.path, 'python')) };
  const parts = ['.dev', 'py', 'kernels', 'test/py'].map(part => join(packageRoot(), part));
  execFileSync(testPython(), ['-m', 'encoders.tiny_models', folder.path], {
    env: { ...process.env, PYTHONPATH: parts.join(':') },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
}, 120_000);
afterAll(() => folder.remove());

const cli = (...words: readonly string[]): Promise<CliResult> =>
  runCli(['sample', ...words, '--device', 'cpu', '--height', '32', '--width', '48'], { cwd: folder.path, env });

interface Drawn {
  readonly files: readonly string[];
  readonly samples: readonly { readonly file: string; readonly prompt: string; readonly seed: number }[];
}

describe('sample with prompts', () => {
  it('draws videos with Wan, from a list of prompts', async () => {
    writeFileSync(join(folder.path, 'list.txt'), 'a cat\n\na mat\n');
    const words = ['--prompts', 'list.txt', '--steps', '2', '--frames', '5', '--num', '2', '--json'];
    const { code, stdout, stderr } = await cli('Wan2.1-T2V-Tiny', ...words);
    expect(code, stderr).toBe(0);
    const drawn = JSON.parse(stdout) as Drawn;
    expect(drawn).toMatchObject({ schema: 1, steps: 2, out: join(folder.path, 'samples') });
    expect(drawn.samples).toMatchObject([
      { prompt: 'a cat', seed: 0, frames: 5 },
      { prompt: 'a cat', seed: 1 },
      { prompt: 'a mat', seed: 0, steps: 2, height: 32, width: 48 },
      { prompt: 'a mat', seed: 1 },
    ]);
    for (const file of drawn.files) expect(readFileSync(file).subarray(4, 8).toString()).toBe('ftyp');
  }, 120_000);

  it('draws pictures with the guided teacher of Cosmos, and says what a folder lacks', async () => {
    const words = ['--prompt', 'a cat', '--teacher', '--steps', '2', '--seed', '9', '--out', 'there'];
    const { code, stdout, stderr } = await cli('./Cosmos-Predict2-Tiny', ...words);
    expect(code, stderr).toBe(0);
    expect(stdout).toBe(`${join(folder.path, 'there', 'a-cat-seed9-2steps-teacher.png')}\n`);
    const { width, height, data } = PNG.sync.read(readFileSync(stdout.trim()));
    expect([width, height]).toEqual([48, 32]);
    expect(new Set(data).size).toBeGreaterThan(20);

    rmSync(join(folder.path, 'Cosmos-Predict2-Tiny', 'vae'), { recursive: true });
    const lacking = await cli('./Cosmos-Predict2-Tiny', ...words);
    expect(lacking).toMatchObject({ code: 3, stdout: '' });
    expect(lacking.stderr).toMatch(/^E_WEIGHTS_NOT_FOUND: .*lacks the VAE \(tokenizer\/tokenizer\.pth or vae\//);
    expect(lacking.stderr).toContain('weights fetch hf:nvidia/Cosmos-Predict2-2B-Text2Image --with-encoders');
    expect(lacking.stderr.trim().split('\n')).toHaveLength(2);
  }, 120_000);
});
