import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { withoutPackages } from '../../../src/python/dev-tools.ts';
import { describePython } from '../../../src/python/doctor.ts';
import { resolvePython } from '../../../src/python/find.ts';
import { ensurePython, type SetupOptions, setupManaged, setupMedia } from '../../../src/python/provision.ts';
import { planTorch } from '../../../src/python/torch-source.ts';
import { allPackages, type FakePython, mediaPackages, writeFakeEnvironment, writeFakePython } from './fake-python.ts';

let root = '';
let env: Record<string, string> = {};
beforeEach(() => {
  root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-provision-')));
  env = {
    PATH: `${join(root, 'path')}:/usr/bin:/bin`,
    RCM_BRIDGE_HOME: join(root, 'home'),
    FAKE_LOG: join(root, 'log'),
    FAKE_FAIL: join(root, 'fail'),
  };
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const plenty = async (): Promise<number> => 1e12;
const base = (fake: FakePython = {}): string => writeFakePython(join(root, 'path', 'python3'), fake);
const setup = (options: Partial<SetupOptions> = {}) =>
  setupManaged({
    torch: 'torch==2.11.0',
    consent: true,
    env,
    cwd: root,
    base: join(root, 'path', 'python3'),
    freeBytes: plenty,
    ...options,
  });
const calls = (): string[] =>
  existsSync(join(root, 'log')) ? readFileSync(join(root, 'log'), 'utf8').trim().split('\n') : [];
const environments = (): string[] =>
  existsSync(join(root, 'home/envs')) ? readdirSync(join(root, 'home/envs')).filter(name => !name.startsWith('.')) : [];

describe('the managed environment', () => {
  it('is built with torch first, then the lock with hashes; sealed; found; used again without pip', async () => {
    base();
    const made = await setup();
    expect(made).toMatchObject({ source: 'managed', version: '3.11.7', packages: allPackages });
    const [venv, torch, lock, ...more] = calls();
    expect(venv).toMatch(/-m venv .*\.tmp$/);
    expect(torch).toMatch(/pip install .*torch==2\.11\.0$/);
    expect(lock).toMatch(/--require-hashes --no-deps -r .*requirements\.lock$/);
    expect(more).toEqual([]);
    const [name = ''] = environments();
    expect(name).toMatch(/^[0-9a-f]{16}$/);
    const seal = JSON.parse(readFileSync(join(root, 'home/envs', name, 'environment.json'), 'utf8'));
    expect(seal).toMatchObject({ schema: 1, torchChoice: 'torch==2.11.0', packages: allPackages, python: '3.11.7' });

    expect(await setup({ consent: false, offline: true })).toEqual(made);
    expect(await resolvePython({ env, cwd: root })).toEqual(made);
    expect(calls()).toHaveLength(3);
  });

  it('goes on where an interrupted setup stopped', async () => {
    base();
    writeFileSync(join(root, 'fail'), 'ERROR: the line went dead');
    const isInterrupted = { ...env, FAKE_FAIL_ON: 'requirements.lock' };
    await expect(setup({ env: isInterrupted })).rejects.toMatchObject({ code: 'E_PYTHON_SETUP' });
    rmSync(join(root, 'fail'));
    expect((await setup()).packages).toEqual(allPackages);
    expect(calls().map(call => /-m venv|torch==|requirements\.lock/.exec(call)?.[0])).toEqual([
      '-m venv',
      'torch==',
      'requirements.lock',
      'requirements.lock',
    ]);
    expect(environments().some(name => name.endsWith('.tmp'))).toBe(false);
  });

  it('ends pip on an abort, and goes on later', async () => {
    base();
    const controller = new AbortController();
    const reason = new Error('enough');
    const onProgress = (line: string): void => {
      if (line.startsWith('Installing torch')) setTimeout(() => controller.abort(reason), 100);
    };
    const started = Date.now();
    const aborted = setup({ env: { ...env, FAKE_SLEEP: '20' }, signal: controller.signal, onProgress });
    await expect(aborted).rejects.toMatchObject({ code: 'E_ABORTED', cause: reason });
    expect(Date.now() - started).toBeLessThan(5_000);
    expect((await setup()).source).toBe('managed');
  });

  it('keeps the temporary folder and says what pip said', async () => {
    base();
    writeFileSync(join(root, 'fail'), 'Collecting torch\nERROR: No matching distribution found for torch==2.11.0\n');
    await expect(setup()).rejects.toMatchObject({
      code: 'E_PYTHON_SETUP',
      message: expect.stringContaining('No matching distribution'),
      hint: expect.stringContaining('goes on where it stopped'),
    });
    expect(environments()).toHaveLength(1);
    expect(environments()[0]).toMatch(/\.tmp$/);
    await expect(resolvePython({ env, cwd: root })).rejects.toMatchObject({ code: 'E_PYTHON_NOT_FOUND' });
    writeFileSync(join(root, 'fail'), 'OSError: [Errno 28] No space left on device\n');
    await expect(setup()).rejects.toMatchObject({ code: 'E_DISK_FULL' });
  });

  it('is made once by two that ask at the same time', async () => {
    base();
    const [one, two] = await Promise.all([setup(), setup()]);
    expect(one).toEqual(two);
    expect(calls().filter(call => call.includes('-m venv'))).toHaveLength(1);
  });

  it('is another one for another torch', async () => {
    base();
    const one = await setup();
    expect((await setup({ torch: 'torch==2.12.0' })).executable).not.toBe(one.executable);
    expect(environments()).toHaveLength(2);
  });

  it('uses the pip of the base where ensurepip is missing', async () => {
    base({ hasEnsurePip: false });
    await setup();
    expect(calls()[0]).toMatch(/--without-pip/);
    expect(calls()[1]).toMatch(/-m pip --python .*\.tmp\/bin\/python3 install/);
  });

  it.each([
    ['no ensurepip and no pip', { hasEnsurePip: false, hasPip: false }, /neither ensurepip nor pip/],
    ['no ensurepip and an old pip', { hasEnsurePip: false, pip: '20.3' }, /pip 20\.3 is too old/],
    ['no venv', { hasVenv: false }, /no venv module/],
  ])('names the package to install: %s', async (_what, fake, message) => {
    base(fake);
    await expect(setup()).rejects.toMatchObject({
      code: 'E_PYTHON_VENV',
      exitCode: 3,
      message: expect.stringMatching(message),
      hint: expect.stringContaining('python3.11-venv'),
    });
    expect(environments()).toEqual([]);
  });
});

const filesOf = (folder: string): readonly unknown[] =>
  readdirSync(folder).map(name => [
    name,
    readFileSync(join(folder, name), 'utf8'),
    statSync(join(folder, name)).mtimeMs,
  ]);

describe('the media packages', () => {
  const media = (options: Partial<SetupOptions> = {}) =>
    setupMedia({ consent: true, env, cwd: root, freeBytes: plenty, ...options });
  const needs = ['huggingface_hub'] as const;

  it('go into an environment of their own that reads the one below and leaves it as it is', async () => {
    base();
    const below = await setup();
    const before = filesOf(dirname(below.executable));
    const made = await media();
    expect(made).toMatchObject({ source: 'managed', packages: { ...allPackages, ...mediaPackages } });
    expect(made.executable).not.toBe(below.executable);
    expect(readFileSync(join(dirname(made.executable), 'rcm-bridge-below.pth'), 'utf8')).toBe(
      `${dirname(below.executable)}\n`,
    );
    const after = filesOf(dirname(below.executable));
    expect(after).toEqual(before);
    expect(calls().filter(call => call.includes('torch=='))).toHaveLength(1);
    expect(calls().at(-1)).toMatch(/--require-hashes --no-deps -r .*requirements-media\.lock$/);

    const done = calls().length;
    expect(await media({ consent: false, offline: true })).toEqual(made);
    expect(await ensurePython({ consent: false, offline: true, env, cwd: root, needs })).toEqual(made);
    expect(await resolvePython({ env, cwd: root, needs })).toEqual(made);
    expect(calls()).toHaveLength(done);
  });

  it('are not used once the environment below is gone', async () => {
    base();
    const below = await setup();
    await media();
    rmSync(dirname(dirname(below.executable)), { recursive: true });
    await expect(resolvePython({ env, cwd: root, needs })).rejects.toMatchObject({
      code: 'E_PYTHON_NOT_FOUND',
      hint: expect.stringContaining('rcm-bridge env setup --with media'),
    });
  });

  it('are asked for once, with size and place, together with what they need below', async () => {
    base();
    const questions: string[] = [];
    const consent = async (question: string): Promise<boolean> => questions.push(question) > 0;
    await media({ torch: 'torch==2.11.0', consent });
    expect(questions).toHaveLength(1);
    expect(questions[0]).toMatch(/PyTorch .*GB.*media packages.*GB/);
    expect(environments()).toHaveLength(2);
  });

  it('need consent, a network and room of their own', async () => {
    base();
    await setup();
    await expect(media({ consent: false })).rejects.toMatchObject({
      code: 'E_CONSENT',
      exitCode: 3,
      message: expect.stringMatching(/GB on disk in .*envs/),
      hint: expect.stringContaining('env setup --with media --yes'),
    });
    await expect(media({ offline: true })).rejects.toMatchObject({ code: 'E_OFFLINE', exitCode: 3 });
    await expect(media({ freeBytes: async () => 1e8 })).rejects.toMatchObject({ code: 'E_DISK_FULL' });
  });

  it('go on where an interrupted setup stopped', async () => {
    base();
    await setup();
    writeFileSync(join(root, 'fail'), 'ERROR: the line went dead');
    const isInterrupted = { ...env, FAKE_FAIL_ON: 'requirements-media.lock' };
    await expect(media({ env: isInterrupted })).rejects.toMatchObject({ code: 'E_PYTHON_SETUP' });
    rmSync(join(root, 'fail'));
    const venvs = calls().filter(call => call.includes('-m venv')).length;
    expect((await media()).packages).toMatchObject(mediaPackages);
    expect(calls().filter(call => call.includes('-m venv'))).toHaveLength(venvs);
  });

  it('are never added to an interpreter that somebody named, nor to one of their own', async () => {
    const named = writeFakeEnvironment(join(root, '.venv'));
    const options = { consent: true, env, cwd: root, needs };
    await expect(ensurePython({ ...options, explicit: named })).rejects.toMatchObject({
      code: 'E_PYTHON_PACKAGES',
      exitCode: 3,
      hint: `Add them: ${named} -m pip install 'huggingface_hub>=1.0'`,
    });
    await expect(resolvePython(options)).rejects.toMatchObject({
      code: 'E_PYTHON_PACKAGES',
      message: expect.stringContaining('huggingface_hub'),
      hint: `Add them: ${named} -m pip install 'huggingface_hub>=1.0', or make an environment with them: rcm-bridge env setup --with media`,
    });
    expect(calls()).toEqual([]);
  });

  it('show in doctor, or how to get them', async () => {
    base();
    await setup();
    const before = await describePython({ env, cwd: root });
    expect(before.media).toMatchObject({ hint: 'Add what is missing with: rcm-bridge env setup --with media' });
    const made = await media();
    expect((await describePython({ env, cwd: root })).media.found).toEqual(made);
  });
});

describe('before anything is installed', () => {
  it('somebody has to agree, having read size and place', async () => {
    base();
    await expect(setup({ consent: false })).rejects.toMatchObject({
      code: 'E_CONSENT',
      exitCode: 3,
      hint: expect.stringContaining('rcm-bridge env setup --yes'),
    });
    const questions: string[] = [];
    const ask = async (question: string): Promise<boolean> => {
      questions.push(question);
      return false;
    };
    await expect(setup({ consent: ask })).rejects.toMatchObject({ code: 'E_CONSENT' });
    expect(questions).toHaveLength(1);
    expect(questions[0]).toContain(join(root, 'home', 'envs'));
    expect(questions[0]).toMatch(/GB/);
    expect(calls()).toEqual([]);
    expect(existsSync(join(root, 'home', 'envs'))).toBe(false);
  });

  it('--offline forbids it', async () => {
    base();
    await expect(setup({ offline: true })).rejects.toMatchObject({ code: 'E_OFFLINE', exitCode: 3 });
  });

  it('the disk has to have room', async () => {
    base();
    await expect(setup({ freeBytes: async () => 1e9 })).rejects.toMatchObject({
      code: 'E_DISK_FULL',
      message: expect.stringMatching(/has 1\.0 GB/),
    });
  });

  it('there has to be a Python of the right version', async () => {
    base({ version: '3.9.18' });
    await expect(setup()).rejects.toMatchObject({
      code: 'E_PYTHON_VERSION',
      message: expect.stringContaining('3.9.18'),
    });
    await expect(
      setupManaged({ consent: true, env: { ...env, PATH: join(root, 'empty') }, cwd: root }),
    ).rejects.toMatchObject({ code: 'E_PYTHON_NOT_FOUND' });
  });
});

describe('ensurePython', () => {
  it('takes what is there, makes what is missing, never replaces what was named', async () => {
    base();
    const options = {
      torch: 'torch==2.11.0',
      consent: true,
      env,
      cwd: root,
      freeBytes: plenty,
    };
    await expect(ensurePython({ ...options, explicit: './path/python3' })).rejects.toMatchObject({
      code: 'E_PYTHON_PACKAGES',
    });
    expect(calls()).toEqual([]);
    expect((await ensurePython({ ...options, env: { ...env, RCM_BRIDGE_PYTHON: 'auto' } })).source).toBe('managed');
    writeFakeEnvironment(join(root, '.venv'));
    expect((await ensurePython(options)).source).toBe('.venv');
  });
});

describe('the build of torch', () => {
  let server: Server | undefined;
  afterEach(() => server?.close());
  const serve = async (answer: 'ok' | 'never'): Promise<string> => {
    const started = createServer((_request, response) => answer === 'ok' && response.end());
    server = started;
    await new Promise<void>(done => started.listen(0, '127.0.0.1', done));
    return `http://127.0.0.1:${(started.address() as AddressInfo).port}/whl/cpu`;
  };
  const plan = (choice: string, options: { index: string; platform?: string; gpu?: boolean }) =>
    planTorch({
      choice,
      index: options.index,
      platform: options.platform ?? 'linux-x64',
      hasGpu: async () => options.gpu ?? false,
    });

  it('auto: without CUDA where there is no GPU and the index answers', async () => {
    const index = await serve('ok');
    expect((await plan('auto', { index })).pipArguments).toEqual(['--extra-index-url', index, 'torch==2.11.0+cpu']);
    expect((await plan('auto', { index, gpu: true })).pipArguments).toEqual(['torch==2.11.0']);
    expect((await plan('auto', { index, platform: 'darwin-arm64' })).pipArguments).toEqual(['torch==2.11.0']);
    expect((await plan('cpu', { index })).pipArguments).toContain('torch==2.11.0+cpu');
    expect((await plan('cuda', { index })).pipArguments).toEqual(['torch==2.11.0']);
  });

  it('auto falls back within about 3 s, cpu never does', async () => {
    const index = await serve('never');
    const started = Date.now();
    const [auto, cpu] = await Promise.all([
      plan('auto', { index }),
      plan('cpu', { index }).catch((error: unknown) => error),
    ]);
    expect(Date.now() - started).toBeLessThan(4_500);
    expect(auto).toMatchObject({ pipArguments: ['torch==2.11.0'], neededBytes: 8e9 });
    expect(cpu).toMatchObject({ code: 'E_TORCH_CPU', exitCode: 3, hint: expect.stringContaining('--torch auto') });
    server?.closeAllConnections();
  });

  it('takes one requirement and no option of pip', async () => {
    const index = await serve('ok');
    expect((await plan('torch==2.12.0', { index })).pipArguments).toEqual(['torch==2.12.0']);
    for (const choice of ['--index-url=http://x', 'torch -r x', 'numpy', '']) {
      await expect(plan(choice, { index })).rejects.toMatchObject({ code: 'E_USAGE' });
    }
  });
});

it('leaves a package and its hashes out of a lock', () => {
  const lock =
    '# note\na==1 \\\n    --hash=sha256:1\ntriton==3.6.0 ; sys_platform == "linux" \\\n    --hash=sha256:2\nz==1 \\\n    --hash=sha256:3\n';
  expect(withoutPackages(lock, ['triton'])).toBe(
    '# note\na==1 \\\n    --hash=sha256:1\nz==1 \\\n    --hash=sha256:3\n',
  );
});
