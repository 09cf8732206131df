import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { runCli } from '../cli.ts';
import { cosmos, type Ended, type Reproduction, type TinyPreset, tinyReproduction, wan } from './tiny-reproduction.ts';

let tiny: Reproduction | undefined;
afterEach(() => tiny?.remove());

/** Kills the whole of a reproduction as soon as `there` says so. */
async function killed(run: Reproduction, env: NodeJS.ProcessEnv, there: () => boolean): Promise<Ended> {
  let timer: NodeJS.Timeout | undefined;
  const end = await run.run(env, (_, child) => {
    timer ??= setInterval(() => {
      if (!there() || child.pid === undefined) return;
      clearInterval(timer);
      process.kill(-child.pid, 'SIGKILL');
    }, 10);
  });
  clearInterval(timer);
  expect(end.signal, end.stderr).toBe('SIGKILL');
  return end;
}

const list = (folder: string): readonly string[] => (existsSync(folder) ? readdirSync(folder) : []);

const networks = {
  wan: { dim: 24, num_heads: 2, num_layers: 1, ffn_dim: 16, text_dim: 16 },
  cosmos: { dim: 32, num_heads: 2, num_layers: 1, adaln_lora_dim: 8, text_dim: 16 },
} as const;

describe.each([
  ['wan', wan, '.mp4'],
  ['cosmos', cosmos, '.png'],
] as const)('%s', (name, preset: TinyPreset, ending) => {
  it('is reproduced from weights to report, killed while it builds and while it trains', async () => {
    const run = tinyReproduction(preset);
    tiny = run;
    const { root, runDir, dataDir, python, settings } = run;
    const prompts = name === 'wan' ? 'builtin:video-8' : 'builtin:image-8';
    const env = { PROMPTS: prompts, SAMPLES: '8', STEPS: '6', RCM_BRIDGE_YES: '1' };
    await killed(run, env, () => list(join(dataDir, '.parts')).filter(file => file.endsWith('.part')).length >= 2);
    expect(list(dataDir).filter(file => file.endsWith('.tar'))).toEqual([]);
    await killed(run, env, () => existsSync(join(runDir, 'checkpoints', 'step-00000002', 'manifest.json')));
    const done = await run.run(env);
    expect(done.code, done.stderr).toBe(0);
    expect(done.stderr).not.toContain('== data build');
    const record = JSON.parse(readFileSync(join(runDir, 'run.json'), 'utf8'));
    expect(record).toMatchObject({ state: 'succeeded', attempt: 2, progress: { step: 6 } });
    const files = readdirSync(join(runDir, 'samples', 'reproduce'));
    expect(files.filter(file => file.endsWith(ending))).toHaveLength(8);
    expect(existsSync(join(runDir, 'report', 'index.html'))).toBe(true);

    // The set that was killed has the bytes of one that was not.
    const words = ['data', 'build', preset.preset, ...settings, '--prompts', prompts, '--out', 'whole', '--yes'];
    const whole = await runCli(words, {
      cwd: root,
      env: { RCM_BRIDGE_PYTHON: python, OMP_NUM_THREADS: '1' },
      timeoutMs: 200_000,
    });
    expect(whole.code, whole.stderr).toBe(0);
    expect(list(join(root, 'whole'))).toEqual(list(dataDir));
    for (const file of list(dataDir)) {
      expect(readFileSync(join(dataDir, file)).equals(readFileSync(join(root, 'whole', file))), file).toBe(true);
    }

    const compare = [join(packageRoot(), 'test', 'e2e', 'compare-export.py'), runDir, preset.set['model.name'] ?? ''];
    const difference = execFileSync(python, [...compare, JSON.stringify(networks[name])], {
      encoding: 'utf8',
      env: { ...process.env, PYTHONPATH: [join(packageRoot(), 'py'), join(packageRoot(), 'kernels')].join(':') },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    expect(Number(difference)).toBeLessThan(1e-4);
  }, 600_000);
});
