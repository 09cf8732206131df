import { spawnSync } from 'node:child_process';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { runCli, temporaryFolder } from '../cli.ts';
import { fixtures, testPython } from '../python.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

const sizes = { dim: 16, numHeads: 2, numLayers: 2, inDim: 1, outDim: 1 };
const wan = { overrides: { ...sizes, ffnDim: 24, textDim: 64, freqDim: 8 } };
const cosmos = {
  name: 'cosmos-predict2-tiny',
  overrides: { ...sizes, textDim: 8, adalnLoraDim: 4, ffnDim: null, freqDim: null },
};

beforeAll(async () => {
  folder = await temporaryFolder();
  for (const [name, model] of Object.entries({ wan, cosmos })) {
    writeFileSync(join(folder.path, `${name}.json`), JSON.stringify({ extends: 'digits-rcm', model }));
  }
  const { status, stderr } = spawnSync(testPython(), [join(fixtures, 'tiny_weights.py'), folder.path], {
    encoding: 'utf8',
    env: { ...process.env, PYTHONPATH: `${join(packageRoot(), 'py')}:${join(packageRoot(), 'kernels')}` },
  });
  if (status !== 0) throw new Error(stderr);
});

afterAll(() => folder.remove());

interface Roles {
  readonly teacher: string;
  readonly student?: string;
  readonly critic?: string;
}

/** `config check` of one of the configs with other weights; nothing is written but what is kept between commands. */
async function check(config: string, { teacher, student, critic }: Roles, words: readonly string[] = []) {
  const before = tree();
  const named = { 'teacher.weights': teacher, 'student.init': student, 'critic.init': critic };
  const set = Object.entries(named).flatMap(([key, value]) =>
    value === undefined ? [] : ['--set', `${key}=${value}`],
  );
  const result = await runCli(['config', 'check', `./${config}.json`, ...set, ...words], { cwd: folder.path });
  expect(tree()).toEqual(before);
  expect(result.stderr).not.toMatch(/^\s+at /m);
  return result;
}

const tree = (): readonly string[] =>
  (readdirSync(folder.path, { recursive: true }) as string[]).filter(name => !/^home\b/.test(name)).sort();

describe('config check', () => {
  it('reads the headers of every layout', async () => {
    const roles = { teacher: './wan.pth', student: './sharded', critic: './pipeline' };
    const { code, stdout, stderr } = await check('wan', roles, ['--json']);
    expect(code, stderr).toBe(0);
    const at = (name: string) => join(folder.path, name);
    const common = { found: true, fits: true, problem: null, tensors: 69, network: { name: 'wan2.1-tiny' } };
    expect(JSON.parse(stdout)).toMatchObject({
      schema: 1,
      valid: true,
      notCompared: null,
      warnings: [],
      sample: { network: 'wan2.1-tiny', latent: [1, 1, 8, 8], tokens: 16 },
      weights: [
        { ...common, key: 'teacher.weights', path: at('wan.pth'), layout: 'official', dtypes: { bfloat16: 69 } },
        { ...common, key: 'student.init', path: at('sharded'), layout: 'official', dtypes: { float32: 69 } },
        { ...common, key: 'critic.init', path: at('pipeline'), layout: 'diffusers' },
      ],
    });
  });

  it('says of each file what is wrong, what is missing first: exit 3', async () => {
    const roles = { teacher: './cosmos/model.pt', student: './missing-shard', critic: './deeper.safetensors' };
    const { code, stdout, stderr } = await check('wan', roles, ['--json']);
    expect(code, stderr).toBe(3);
    expect(stderr).toMatch(/^E_WEIGHTS_NOT_FOUND: student\.init: .*00002-of-00002.* \(2 more\)\n.+\n$/);
    const problem = (code: string, hint: RegExp) => ({ code, hint: expect.stringMatching(hint) });
    expect(JSON.parse(stdout)).toMatchObject({
      valid: false,
      weights: [
        {
          fits: false,
          network: { name: 'cosmos-predict2-tiny' },
          problem: problem('E_WEIGHTS_MISMATCH', /cosmos-predict2-tiny with .*adalnLoraDim 4/),
        },
        { fits: false, found: true, network: null, problem: problem('E_WEIGHTS_NOT_FOUND', /fetch/i) },
        { fits: false, problem: problem('E_WEIGHTS_MISMATCH', /^They fit with model\.overrides\.numLayers=3\.$/) },
      ],
    });
  });

  it('advises no size that the data refuse', async () => {
    const { code, stdout } = await check('wan', { teacher: './latents.safetensors' }, ['--json']);
    expect(code).toBe(5);
    const hint =
      'They are of wan2.1-tiny in a size that this config refuses: ' +
      'model.overrides.inDim is 16, but the digits have 1 channel. Name others.';
    expect(JSON.parse(stdout).weights).toMatchObject([{ fits: false, problem: { code: 'E_WEIGHTS_MISMATCH', hint } }]);
  });

  it('misses the label table of a teacher, with Python or without: exit 3', async () => {
    for (const words of [[], ['--python', './nowhere/python']]) {
      const { code, stdout, stderr } = await check('wan', { teacher: './sharded', student: './pipeline' }, words);
      expect({ code, stdout }).toEqual({ code: 3, stdout: '' });
      expect(stderr).toMatch(
        /^E_WEIGHTS_NOT_FOUND: teacher\.weights: There is no label table .*sharded\/conditioner\.safetensors\.\nCopy .+\n$/,
      );
    }
  });

  it('takes Cosmos weights in a Cosmos config, and refuses those of Wan in two lines: exit 5', async () => {
    const roles = { teacher: './cosmos', student: './whole.safetensors', critic: './truncated.safetensors' };
    const { code, stdout, stderr } = await check('cosmos', roles);
    expect({ code, stdout }).toEqual({ code: 5, stdout: '' });
    expect(stderr).toMatch(/^E_WEIGHTS_MISMATCH: student\.init: .*whole.* \(1 more\)\n.*wan2\.1-tiny.*\n$/);
  });

  it('checks the config where there is no Python, and says what was not looked at', async () => {
    const { code, stdout, stderr } = await check('wan', { teacher: './wan.pth' }, ['--python', './nowhere/python']);
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(/^\.\/wan\.json is valid\.\n/);
    expect(stdout).toMatch(/teacher\.weights +not compared: .*wan\.pth$/m);
    expect(stderr).toMatch(/^The weights were not compared\. .*nowhere/);
    const wrong = ['--python', './nowhere/python', '--set', 'model.height=10'];
    expect((await check('wan', { teacher: './wan.pth' }, wrong)).code).toBe(2);
  });

  it('names the command that fetches published weights: exit 3, without Python', async () => {
    const words = ['config', 'check', 'wan2.1-t2v-1.3b-480p-rcm', '--python', './nowhere/python'];
    const { code, stdout, stderr } = await runCli(words, { cwd: folder.path });
    expect({ code, stdout }).toEqual({ code: 3, stdout: '' });
    expect(stderr).toMatch(/^E_WEIGHTS_NOT_FOUND: .*weights\/Wan2\.1-T2V-1\.3B\.\n/);
    expect(stderr).toMatch(/rcm-bridge weights fetch hf:Wan-AI\/Wan2\.1-T2V-1\.3B .*safetensors/);
    const hub = await runCli([...words, '--set', 'teacher.weights=hf:someone/model@main'], { cwd: folder.path });
    expect(hub.code).toBe(3);
    expect(hub.stderr).toMatch(/rcm-bridge weights fetch hf:someone\/model@main/);
  });
});
