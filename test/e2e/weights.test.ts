import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { runCli, temporaryFolder } from '../cli.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});

afterAll(() => folder.remove());

const weights = (...words: readonly string[]) => runCli(['weights', ...words], { cwd: folder.path });

/** What is refused with these is refused before Python is looked for. */
const noPython = ['--python', './nowhere/python'] as const;

describe('weights', () => {
  it('does what docs/weights.md shows', { timeout: 120_000 }, async () => {
    const guide = readFileSync(join(packageRoot(), 'docs', 'weights.md'), 'utf8');
    const commands = [...guide.matchAll(/^\$ rcm-bridge weights (.+)$/gm)].map(match => String(match[1]).split(' '));
    expect(commands).toHaveLength(3);
    const said: string[] = [];
    for (const command of commands) {
      const { code, stdout, stderr } = await weights(...command);
      expect(code, stderr).toBe(0);
      said.push(stdout);
    }
    expect(said[0]).toContain('hf:Wan-AI/Wan2.1-T2V-1.3B (diffusion_pytorch_model.safetensors)');
    expect(said[1]).toMatch(/^network {3}wan2\.1-tiny dim=64 .*\nlayout {4}official, 96 tensors, float32\n/m);
    expect(said[1]).toMatch(/^verified {2}complete and finite$/m);
    expect(said[2]).toMatch(/^verified {2}96 tensors equal bit for bit; a forward pass is equal$/m);
    expect(readdirSync(join(folder.path, 'digits-teacher-diffusers')).sort()).toEqual([
      'conditioner.safetensors',
      'config.json',
      'diffusion_pytorch_model.safetensors',
      'sampler.json',
    ]);
    const sampled = await runCli(['sample', 'digits-teacher-diffusers', '--num', '1', '--steps', '2'], {
      cwd: folder.path,
    });
    expect(sampled.code, sampled.stderr).toBe(0);
  });

  it('comes back to the same tensors through --json, and replaces only with --yes', { timeout: 120_000 }, async () => {
    const words = [
      'convert',
      './digits-teacher-diffusers',
      '--to',
      'comfyui',
      '--out',
      'w.safetensors',
      '--dtype',
      'bf16',
    ];
    const first = await weights(...words, '--json', '--verify');
    expect(first.code, first.stderr).toBe(0);
    const done = JSON.parse(first.stdout);
    expect(done).toMatchObject({ schema: 1, path: join(folder.path, 'w.safetensors'), checked: { tensors: 96 } });
    expect(done.inspection).toMatchObject({ layout: 'diffusers', network: { name: 'wan2.1-tiny' }, mismatch: null });
    expect(done.checked.forward.difference).toBeGreaterThan(0);
    const [again, agreed] = await Promise.all([
      weights(...words),
      weights(...words.slice(0, 4), '--out', 'b', '--yes'),
    ]);
    expect(again).toMatchObject({ code: 3, stdout: '' });
    expect(again.stderr).toMatch(/^E_CONSENT: .+\n.*--yes.*\n$/);
    expect(agreed.code).toBe(0);
    expect(existsSync(join(folder.path, 'b', 'wan2.1-tiny.safetensors'))).toBe(true);
  });

  it('takes no runs, and says what it takes', async () => {
    const { code, stderr } = await weights('verify', './nowhere');
    expect({ code, stderr }).toEqual({
      code: 3,
      stderr: `E_WEIGHTS_NOT_FOUND: There are no weights at ${join(folder.path, 'nowhere')}.\nGive a file, a folder, builtin:NAME or hf:OWNER/NAME.\n`,
    });
  });

  it.each([
    [['verify', './nowhere'], 3, 'E_WEIGHTS_NOT_FOUND'],
    [['convert', 'builtin:digits-teacher', '--to', 'gguf'], 2, 'E_USAGE'],
    [['convert', 'builtin:digits-teacher', '--to', 'official', '--dtype', 'int4'], 2, 'E_USAGE'],
    [['convert', 'builtin:digits-teacher'], 2, 'E_USAGE'],
    [['convert', 'builtin:digits-teacher', '--to', 'diffusers', '--out', 'x.pt', ...noPython], 2, 'E_USAGE'],
    [['convert', 'builtin:digits-teacher', '--to', 'diffusers', '--out', 'x.safetensors', ...noPython], 2, 'E_USAGE'],
    [['convert', 'builtin:digits-teacher', '--to', 'comfyui', '--out', 'x.pth', ...noPython], 2, 'E_USAGE'],
    [['verify', 'builtin:digits-teacher', '--model', 'cosmos-predict2-t2i-2b'], 5, 'E_WEIGHTS_MISMATCH'],
  ] as const)('%j ends with %d', { timeout: 60_000 }, async (words, exitCode, code) => {
    const before = readdirSync(folder.path).sort();
    const { code: ended, stdout, stderr } = await weights(...words);
    expect(ended).toBe(exitCode);
    expect(stdout).toBe('');
    expect(stderr).toMatch(new RegExp(`^${code}: .+\\n.+\\n$`));
    expect(readdirSync(folder.path).sort()).toEqual(before);
  });
});
