import { chmodSync, mkdirSync, mkdtempSync, realpathSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { describePython } from '../../../src/python/doctor.ts';
import { resolvePython } from '../../../src/python/find.ts';
import { managedHome } from '../../../src/python/home.ts';
import { probePython } from '../../../src/python/probe.ts';
import { isInRange } from '../../../src/python/requirements.ts';
import { allPackages, type FakePython, writeFakeEnvironment, writeFakePython } from './fake-python.ts';

let root = '';
let env: Record<string, string> = {};
beforeEach(() => {
  root = realpathSync(mkdtempSync(join(tmpdir(), 'rcm-find-')));
  env = { PATH: join(root, 'path'), RCM_BRIDGE_HOME: join(root, 'home') };
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

const find = (options: { explicit?: string; requirePackages?: boolean } = {}) =>
  resolvePython({ env, cwd: root, ...options });

describe('the search', () => {
  it('goes .venv, VIRTUAL_ENV, CONDA_PREFIX, path; the first that passes wins', async () => {
    writeFakePython(join(root, 'path', 'python3'), { packages: allPackages });
    expect((await find()).source).toBe('path');
    writeFakeEnvironment(join(root, 'conda'));
    env.CONDA_PREFIX = join(root, 'conda');
    expect((await find()).source).toBe('CONDA_PREFIX');
    writeFakeEnvironment(join(root, 'active'));
    env.VIRTUAL_ENV = join(root, 'active');
    expect((await find()).source).toBe('VIRTUAL_ENV');
    writeFakeEnvironment(join(root, '.venv'), { packages: {} });
    expect((await find()).source).toBe('VIRTUAL_ENV');
    writeFakeEnvironment(join(root, '.venv'));
    expect(await find()).toMatchObject({
      source: '.venv',
      executable: join(root, '.venv/bin/python3'),
      version: '3.11.7',
      packages: allPackages,
    });
  });

  it('says how to make one where none passes; doctor lists why', async () => {
    writeFakePython(join(root, 'path', 'python3'), { version: '3.9.2' });
    await expect(find()).rejects.toMatchObject({
      code: 'E_PYTHON_NOT_FOUND',
      exitCode: 3,
      hint: expect.stringContaining('rcm-bridge env setup'),
    });
    const described = await describePython({ env, cwd: root });
    expect(described.selected).toBeUndefined();
    expect(described.candidates).toMatchObject([
      { source: 'path', version: '3.9.2', usable: false, problem: expect.stringContaining('3.9.2') },
    ]);
  });
});

describe('an explicit interpreter', () => {
  it('is the only one looked at: a path, a folder, a name, or the variable', async () => {
    writeFakeEnvironment(join(root, '.venv'));
    const other = writeFakeEnvironment(join(root, 'other'));
    writeFakePython(join(root, 'path', 'python3.12'), { version: '3.12.1', packages: allPackages });
    expect(await find({ explicit: 'other/bin/python3' })).toMatchObject({ executable: other, source: 'explicit' });
    expect(await find({ explicit: './other' })).toMatchObject({ executable: other });
    expect(await find({ explicit: 'python3.12' })).toMatchObject({ version: '3.12.1' });
    expect(await find({ explicit: 'auto' })).toMatchObject({ source: '.venv' });
    env.RCM_BRIDGE_PYTHON = other;
    expect(await find()).toMatchObject({ executable: other, source: 'explicit' });
  });

  it.each<[string, FakePython, string, RegExp, RegExp]>([
    [
      'too old',
      { version: '3.9.18', packages: allPackages },
      'E_PYTHON_VERSION',
      /CPython 3\.9\.18; the sidecar needs CPython 3\.11/,
      /--python/,
    ],
    ['Python 2', { version: '2.7.18' }, 'E_PYTHON_VERSION', /2\.7\.18/, /./],
    ['too new', { version: '3.14.0', packages: allPackages }, 'E_PYTHON_VERSION', /3\.14\.0/, /./],
    ['another implementation', { implementation: 'PyPy', packages: allPackages }, 'E_PYTHON_VERSION', /PyPy/, /./],
    [
      'without torch',
      { packages: { numpy: '2.3.5', pyzmq: '27.3.0', msgspec: '0.22.0', safetensors: '0.8.0' } },
      'E_PYTHON_PACKAGES',
      /it lacks torch/,
      /-m pip install 'torch>=2\.11,<2\.16'$/,
    ],
    [
      'old torch',
      { packages: { ...allPackages, torch: '2.10.1+cu128' } },
      'E_PYTHON_PACKAGES',
      /torch \(has 2\.10\.1\+cu128\)/,
      /torch/,
    ],
    [
      'new numpy',
      { packages: { ...allPackages, numpy: '2.4.0' } },
      'E_PYTHON_PACKAGES',
      /numpy \(has 2\.4\.0\)/,
      /'numpy<2\.4'/,
    ],
  ])('%s', async (_what, fake, code, message, hint) => {
    const python = writeFakePython(join(root, 'one', 'python'), fake);
    await expect(find({ explicit: python })).rejects.toMatchObject({
      code,
      exitCode: 3,
      message: expect.stringMatching(message),
      hint: expect.stringMatching(hint),
    });
  });

  it('that is missing, no program or no Python is E_PYTHON_NOT_FOUND', async () => {
    writeFileSync(join(root, 'text'), 'hello');
    writeFileSync(join(root, 'echo'), '#!/bin/sh\necho hello\n');
    chmodSync(join(root, 'echo'), 0o755);
    for (const explicit of ['./none', './text', './echo', 'no-such-python']) {
      await expect(find({ explicit })).rejects.toMatchObject({ code: 'E_PYTHON_NOT_FOUND', exitCode: 3 });
    }
  });

  it('that knows no -I, as Python 2, is still asked', async () => {
    const old = writeFakePython(join(root, 'real'), { version: '2.7.18' });
    const text = `#!/bin/sh\n[ "$1" = -I ] && echo "Unknown option: -I" >&2 && exit 2\nshift 2\nexec ${old} -I "$@"\n`;
    writeFileSync(join(root, 'python2'), text);
    chmodSync(join(root, 'python2'), 0o755);
    await expect(find({ explicit: './python2' })).rejects.toMatchObject({ code: 'E_PYTHON_VERSION' });
  });

  it('may lack packages where none are asked for', async () => {
    expect(await find({ explicit: writeFakePython(join(root, 'python')), requirePackages: false })).toMatchObject({
      version: '3.11.7',
    });
  });
});

describe('the probe', () => {
  it('keeps an answer until the interpreter or its packages change', async () => {
    const home = join(root, 'home');
    const python = writeFakePython(join(root, 'python'), { packages: allPackages });
    expect((await probePython(python, { home })).usable).toBe(true);
    // The same time stamp, another content: the kept answer shows that nothing ran.
    const stamp = new Date(1_700_000_000_000);
    utimesSync(python, stamp, stamp);
    await probePython(python, { home });
    writeFakePython(python, { version: '3.9.0' });
    utimesSync(python, stamp, stamp);
    expect((await probePython(python, { home })).usable).toBe(true);
    writeFakePython(python, { version: '3.9.0' });
    expect((await probePython(python, { home })).usable).toBe(false);
  });

  it('works where nothing can be kept', async () => {
    mkdirSync(join(root, 'home'));
    writeFileSync(join(root, 'home', 'probes'), 'a file in the way');
    expect(
      (
        await probePython(writeFakePython(join(root, 'python'), { packages: allPackages }), {
          home: join(root, 'home'),
        })
      ).usable,
    ).toBe(true);
  });

  it('passes an abort on', async () => {
    const python = writeFakePython(join(root, 'python'));
    await expect(probePython(python, { signal: AbortSignal.abort(new Error('enough')) })).rejects.toMatchObject({
      code: 'E_ABORTED',
    });
  });
});

it('compares versions by number, not by text', () => {
  expect(isInRange('2.11.0+cpu', [2, 11], [2, 16])).toBe(true);
  expect(isInRange('2.9.1', [2, 11], [2, 16])).toBe(false);
  expect(isInRange('2.16.0a0', [2, 11], [2, 16])).toBe(false);
  expect(isInRange('3.0', [2, 11], undefined)).toBe(true);
});

it('keeps its things in the cache folder of the user', () => {
  expect(managedHome({ RCM_BRIDGE_HOME: '/somewhere' })).toBe('/somewhere');
  expect(managedHome({ HOME: '/users/me' })).toMatch(/^\/users\/me\/.*rcm-bridge$/);
});
