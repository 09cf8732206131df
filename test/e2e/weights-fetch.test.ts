import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, realpathSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { type CliResult, runCli } from '../cli.ts';
import { fixtures, testPython } from '../python.ts';
import { pythonWithDevTools } from '../python-with-dev-tools.ts';

const locator = 'hf:Tiny-AI/Wan-Tiny';
const weights = 'diffusion_pytorch_model.safetensors';

// Two starts of a sidecar each; the hub is a fake one on loopback.
let root = '';
let python = '';
let hub: ChildProcess | undefined;
let env: NodeJS.ProcessEnv = {};
beforeAll(async () => {
  root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-fetch-')));
  python = pythonWithDevTools(join(root, 'python'));
  const folder = join(root, 'hub', 'Tiny-AI', 'Wan-Tiny');
  mkdirSync(folder, { recursive: true });
  makeWeights(folder);
  hub = spawn(testPython(), [join(fixtures, 'fake_hub.py'), join(root, 'hub')], { stdio: ['pipe', 'pipe', 'inherit'] });
  const [url] = await new Promise<string[]>((settle, reject) => {
    createInterface({ input: hub?.stdout ?? process.stdin }).once('line', line => settle([line]));
    hub?.once('exit', code => reject(new Error(`the hub ended with ${code}`)));
  });
  env = { HF_ENDPOINT: url, HF_HOME: join(root, 'hf'), RCM_BRIDGE_PYTHON: python, RCM_BRIDGE_HOME: join(root, 'home') };
});
afterAll(async () => {
  hub?.stdin?.end();
  await rm(root, { recursive: true, force: true });
});

function makeWeights(folder: string): void {
  const script = `
import sys
from rcm_sidecar.checkpoints import save_network
from rcm_sidecar.networks import build
save_network(build("wan2.1-tiny", dim=24, num_heads=2, num_layers=1, ffn_dim=16, text_dim=8), sys.argv[1])
`;
  execFileSync(testPython(), ['-c', script, folder], {
    env: { ...process.env, PYTHONPATH: [join(packageRoot(), 'py'), join(packageRoot(), 'kernels')].join(':') },
  });
}

const cli = (words: readonly string[], more: NodeJS.ProcessEnv = {}): Promise<CliResult> =>
  runCli(['weights', ...words], { cwd: root, env: { ...env, ...more } });

describe('weights fetch', () => {
  it('asks before it fetches; fetched weights are found, verified and listed without the hub', async () => {
    const refused = await cli(['fetch', locator]);
    expect(refused).toMatchObject({ code: 3, stdout: '' });
    expect(refused.stderr).toMatch(
      /^E_CONSENT: .*Tiny-AI\/Wan-Tiny@main: .* GB to download into .*snapshots.*apache-2\.0/,
    );
    expect(refused.stderr).toContain(`rcm-bridge weights fetch ${locator} --download`);
    expect(refused.stderr.trim().split('\n')).toHaveLength(2);

    const fetched = await cli(['fetch', locator, '--download', '--json']);
    expect(fetched.code, fetched.stderr).toBe(0);
    expect(fetched.stderr).toMatch(/GB to download into .*licence apache-2\.0/);
    const document = JSON.parse(fetched.stdout) as { path: string; hashes: { file: string }[]; license: string };
    expect(document).toMatchObject({ schema: 1, locator, license: 'apache-2.0', hashes: [{ file: weights }] });
    const content = readFileSync(join(document.path, weights));
    expect(content.equals(readFileSync(join(root, 'hub', 'Tiny-AI', 'Wan-Tiny', weights)))).toBe(true);

    const gone = { HF_ENDPOINT: 'http://127.0.0.1:9' };
    const again = await cli(['fetch', locator, '--offline'], gone);
    expect(again, again.stderr).toMatchObject({ code: 0, stdout: `${document.path}\n` });
    const verified = await cli(['verify', locator], gone);
    expect(verified.code, verified.stderr).toBe(0);
    expect(verified.stdout).toContain('complete and finite');
  });

  it('says in two lines what is wrong, and how to mend it', async () => {
    const cases = [
      [['fetch', locator, '--revision', 'v9'], {}, 'E_HUB_NOT_FOUND'],
      [['fetch', locator, '--offline'], { HF_HOME: join(root, 'empty') }, 'E_OFFLINE'],
      [['fetch', locator], { RCM_BRIDGE_PYTHON: testPython() }, 'E_PYTHON_PACKAGES'],
      [['verify', locator], { HF_HOME: join(root, 'empty') }, 'E_WEIGHTS_NOT_FOUND'],
    ] as const;
    for (const [words, more, code] of cases) {
      const { code: exitCode, stdout, stderr } = await cli(words, more);
      expect({ exitCode, stdout, words }, stderr).toEqual({ exitCode: 3, stdout: '', words });
      expect(stderr).toContain(code);
      expect(stderr.trim().split('\n'), stderr).toHaveLength(2);
    }
    const wrong = await cli(['fetch', 'wan2.1-t2v-1.3b']);
    expect(wrong).toMatchObject({ code: 2, stdout: '' });
    expect(wrong.stderr).toContain('Did you mean hf:Wan-AI/Wan2.1-T2V-1.3B?');
  });
});
