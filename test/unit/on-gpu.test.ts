import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { temporaryFolder } from '../cli.ts';
import { testPython } from '../python.ts';

const script = (name: string): string => join(packageRoot(), 'scripts', name);

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let bundle: string;

beforeEach(async () => {
  folder = await temporaryFolder();
  bundle = join(folder.path, 'bundle');
  mkdirSync(bundle);
});
afterEach(() => folder.remove());

/** A bundle by name only: what it is for stands beside it, and that is looked at first. */
function pretendBundle({
  python = '3.12',
  sources = execFileSync(script('sources-hash.sh'), { encoding: 'utf8' }).trim(),
}) {
  writeFileSync(join(bundle, 'bundle.tar.xz'), '');
  writeFileSync(join(bundle, 'bundle.txt'), `python ${python}\nsources ${sources}\n`);
}

function onGpu(python: string) {
  const { status, stdout, stderr } = spawnSync('bash', [script('on-gpu.sh'), 'doctor'], {
    encoding: 'utf8',
    env: { PATH: process.env.PATH, TMPDIR: folder.path, RCM_GPU_BUNDLE: bundle, RCM_BRIDGE_PYTHON: python },
  });
  expect(stdout).toBe('');
  expect(stderr.trim().split('\n')).toHaveLength(2);
  expect(readdirSync(folder.path).filter(name => name.startsWith('rcm-bridge-gpu'))).toEqual([]);
  return { status, stderr };
}

/** A Python that says what `facts` print. */
function pretendPython(...facts: readonly string[]): string {
  const path = join(folder.path, 'python3');
  writeFileSync(path, `#!/bin/sh\nprintf '%s\\n' ${facts.map(line => `'${line}'`).join(' ')}\n`);
  chmodSync(path, 0o755);
  return path;
}

describe('scripts/on-gpu.sh refuses, unpacks nothing and says the fix', () => {
  it('without a bundle', () => {
    expect(onGpu('python3')).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/no bundle in .*\n.*make gpu-bundle/),
    });
  });

  it('with a bundle of other sources', () => {
    pretendBundle({ sources: '0123456789abcdef' });
    expect(onGpu('python3')).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/other sources.*\n.*make gpu-bundle/),
    });
  });

  it('without a Python', () => {
    pretendBundle({});
    expect(onGpu(join(folder.path, 'none'))).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/no Python .*\n.*RCM_BRIDGE_PYTHON/),
    });
  });

  it('with a real Python of another version than the wheels', () => {
    pretendBundle({ python: '3.99' });
    expect(onGpu(testPython())).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/is Python 3\.\d+; the bundle has packages for 3\.99\.\n.*--python 3\.\d+/),
    });
  });

  it.each([
    ['none', /has no PyTorch/],
    ['2.10.1+cu128', /has PyTorch 2\.10\.1\+cu128; the sidecar needs 2\.11/],
  ])('with a Python whose PyTorch is %s', (torch, message) => {
    pretendBundle({});
    expect(onGpu(pretendPython(`3.12 ${torch}`))).toMatchObject({ status: 3, stderr: expect.stringMatching(message) });
  });
});
