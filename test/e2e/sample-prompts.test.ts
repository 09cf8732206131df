import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';
import { pythonWithDevTools } from '../python-with-dev-tools.ts';
import { makeTinyModels } from '../tiny-models.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let env: NodeJS.ProcessEnv = {};
beforeAll(async () => {
  folder = await temporaryFolder();
  env = { RCM_BRIDGE_PYTHON: pythonWithDevTools(join(folder.path, 'python')) };
  makeTinyModels(folder.path, ['wan_original']);
  writeFileSync(join(folder.path, 'list.txt'), 'a cat\n\na mat\n');
}, 300_000);
afterAll(() => folder.remove());

interface Drawn {
  readonly files: readonly string[];
  readonly samples: readonly object[];
}

describe('sample with a list of prompts', () => {
  // Cosmos-Predict2 is in sample-prompts.long.test.ts; the job itself is tested on both in test/py/sampling.
  it('draws videos with Wan, and says what its folder lacks', async () => {
    const size = ['--frames', '5', '--height', '32', '--width', '48', '--device', 'cpu'];
    const words = ['sample', 'wan_original', '--prompts', 'list.txt', '--steps', '2', '--num', '2', '--json', ...size];
    const { code, stdout, stderr } = await runCli(words, { cwd: folder.path, env, timeoutMs: 150_000 });
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

    rmSync(join(folder.path, 'wan_original', 'Wan2.1_VAE.pth'));
    const lacking = await runCli(words, { cwd: folder.path, env, timeoutMs: 150_000 });
    expect(lacking).toMatchObject({ code: 3, stdout: '' });
    expect(lacking.stderr).toMatch(/^E_WEIGHTS_NOT_FOUND: .*lacks the VAE \(Wan2\.1_VAE\.pth or vae\/config\.json\)/);
    expect(lacking.stderr).toContain('weights fetch hf:Wan-AI/Wan2.1-T2V-1.3B --with-encoders');
    expect(lacking.stderr.trim().split('\n')).toHaveLength(2);
  }, 300_000);
});
