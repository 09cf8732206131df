import { chmodSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';

interface Case {
  readonly name: string;
  readonly words: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
  readonly exitCode: number;
  readonly code: string;
  /** A refused command creates nothing; a run that fails leaves its folder. */
  readonly startsRun?: true;
}

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
const earlier = join('runs', 'earlier', 'run.json');

beforeAll(async () => {
  folder = await temporaryFolder();
  mkdirSync(join(folder.path, 'runs', 'earlier'), { recursive: true });
  writeFileSync(join(folder.path, earlier), '{}');
  writeFileSync(join(folder.path, 'a-file'), '');
  writeFileSync(join(folder.path, 'empty.safetensors'), '');
  writeFileSync(join(folder.path, 'wrong-type.yaml'), 'version: 1\nextends: digits-rcm\nseed: many\n');
  writeFileSync(join(folder.path, 'unknown-key.yaml'), 'version: 1\nextends: digits-rcm\nteacher:\n  guidence: 2\n');
  fakePython('python-3.9', '3.9.18', '[3, 9, 18]');
  fakePython('python-no-torch', '3.11.7', '[3, 11, 7]');
});

afterAll(() => folder.remove());

/** A program that answers as an interpreter of that version without packages would. */
function fakePython(name: string, version: string, parts: string): void {
  const path = join(folder.path, name);
  writeFileSync(
    path,
    `#!/bin/sh\n# stands in for CPython ${version} ${parts}\nexec ${name === 'python-3.9' ? 'false' : 'python3 -I -S'} "$@"\n`,
  );
  chmodSync(path, 0o755);
}

const cases: readonly Case[] = [
  { name: 'unknown command', words: ['distil'], exitCode: 2, code: 'E_USAGE' },
  { name: 'unknown option', words: ['distill', '--stepz', '3'], exitCode: 2, code: 'E_USAGE' },
  { name: 'no command', words: [], exitCode: 2, code: 'E_USAGE' },
  { name: 'unknown preset', words: ['distill', 'digits-rcmm'], exitCode: 2, code: 'E_CONFIG_NOT_FOUND' },
  { name: 'missing file', words: ['distill', './nowhere.yaml'], exitCode: 2, code: 'E_CONFIG_NOT_FOUND' },
  { name: 'unknown key', words: ['distill', './unknown-key.yaml'], exitCode: 2, code: 'E_CONFIG_UNKNOWN_KEY' },
  {
    name: 'unknown key of --set',
    words: ['distill', '-s', 'teacher.guidence=2'],
    exitCode: 2,
    code: 'E_CONFIG_UNKNOWN_KEY',
  },
  { name: 'wrong type', words: ['distill', './wrong-type.yaml'], exitCode: 2, code: 'E_CONFIG_VALUE' },
  {
    name: 'a file where the runs folder should be',
    words: ['distill', '--runs-dir', 'a-file'],
    exitCode: 3,
    code: 'E_RUNS_DIR',
  },
  { name: 'a file where the run should be', words: ['distill', '--run-dir', 'a-file'], exitCode: 2, code: 'E_RUN_DIR' },
  {
    name: 'Python without torch',
    words: ['distill', '--python', './python-no-torch'],
    exitCode: 3,
    code: 'E_PYTHON_PACKAGES',
  },
  { name: 'Python that is none', words: ['distill', '--python', './a-file'], exitCode: 3, code: 'E_PYTHON_NOT_FOUND' },
  { name: 'no such run', words: ['resume', 'nowhere'], exitCode: 2, code: 'E_RUN_NOT_FOUND' },
  { name: 'empty weights', words: ['sample', './empty.safetensors'], exitCode: 5, code: 'E_WEIGHTS_SAMPLER' },
  {
    name: 'teacher that is missing',
    words: ['distill', ...quickRun(2), '--set', 'teacher.weights=./nowhere.safetensors'],
    exitCode: 5,
    code: 'E_WEIGHTS_NOT_FOUND',
  },
];

describe('bad input', () => {
  it.each(cases)('$name: exit $exitCode, $code', async ({ words, env, exitCode, code, startsRun }) => {
    const result = await runCli(words, { cwd: folder.path, ...(env ? { env } : {}) });
    const lines = result.stderr.trimEnd().split('\n');
    expect(result.stderr).toContain(code);
    expect(result.code, result.stderr).toBe(exitCode);
    expect(lines.length, result.stderr).toBeLessThanOrEqual(2);
    expect(lines[1] ?? '', 'a second line with the fix').not.toBe('');
    expect(result.stderr).not.toMatch(/^\s+at /m);
    expect(result.stdout).toBe('');
    if (!startsRun) expect(readdirSync(join(folder.path, 'runs'))).toEqual(['earlier']);
  });

  it('names file, line and column of a key that does not exist, and the nearest one', async () => {
    const result = await runCli(['config', 'check', './unknown-key.yaml'], { cwd: folder.path });
    expect(result.stderr).toMatch(/unknown-key\.yaml:4:3/);
    expect(result.stderr).toContain('teacher.guidance');
  });

  it('names the Nodes that work when this one is too old', async () => {
    const { execFileSync } = await import('node:child_process');
    const script = `Object.defineProperty(process.versions, 'node', { value: '18.20.8' }); import(${JSON.stringify(join(packageRoot(), 'bin', 'rcm-bridge.js'))})`;
    const run = () => execFileSync(process.execPath, ['-e', script], { stdio: 'pipe' });
    expect(run).toThrow(
      expect.objectContaining({ status: 3, stderr: expect.objectContaining({ length: expect.any(Number) }) }),
    );
  });
});
