import { type ChildProcess, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { packageRoot } from '../../src/package-root.ts';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { onlyRun } from '../run-files.ts';
import { writeFakePython } from '../unit/python/fake-python.ts';

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
  writeFakePython(join(folder.path, 'python-3.9'), { version: '3.9.18' });
  writeFakePython(join(folder.path, 'python-no-torch'), {});
  mkdirSync(join(folder.path, 'no-venv'));
  writeFakePython(join(folder.path, 'no-venv', 'python3'), { hasVenv: false, hasEnsurePip: false, hasPip: false });
  foreignWeights(join(folder.path, 'foreign.safetensors'));
  writeFileSync(join(folder.path, 'full-disk.mjs'), fullDisk);
});

afterAll(() => folder.remove());

/** A safetensors file with one tensor that no network has. */
function foreignWeights(path: string): void {
  const header = JSON.stringify({ 'encoder.weight': { dtype: 'F32', shape: [1], data_offsets: [0, 4] } });
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(path, Buffer.concat([length, Buffer.from(header), Buffer.alloc(4)]));
}

/** Loaded before the command line: writing a run's record finds the disk full. */
const fullDisk = `
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
const write = fs.writeFileSync;
fs.writeFileSync = (path, ...rest) => {
  if (String(path).includes('run.json')) throw Object.assign(new Error('no space left on device'), { code: 'ENOSPC' });
  return write(path, ...rest);
};
syncBuiltinESMExports();
`;

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
  { name: 'Python 3.9', words: ['distill', '--python', './python-3.9'], exitCode: 3, code: 'E_PYTHON_VERSION' },
  { name: 'Python that is none', words: ['distill', '--python', './a-file'], exitCode: 3, code: 'E_PYTHON_NOT_FOUND' },
  { name: 'no such run', words: ['resume', 'nowhere'], exitCode: 2, code: 'E_RUN_NOT_FOUND' },
  { name: 'empty weights', words: ['sample', './empty.safetensors'], exitCode: 5, code: 'E_WEIGHTS_SAMPLER' },
  {
    name: 'a Python that can make no environment',
    words: ['distill', '--yes'],
    env: { RCM_BRIDGE_PYTHON: '', PATH: 'no-venv' },
    exitCode: 3,
    code: 'E_PYTHON_VENV',
  },
  {
    name: 'no Python environment and no consent',
    words: ['distill'],
    env: { RCM_BRIDGE_PYTHON: '', PATH: 'no-venv' },
    exitCode: 3,
    code: 'E_CONSENT',
  },
  {
    name: 'a full disk',
    words: ['distill', ...quickRun(2)],
    env: { NODE_OPTIONS: '--import ./full-disk.mjs' },
    exitCode: 3,
    code: 'E_DISK_FULL',
  },
  {
    name: 'teacher of another network',
    words: ['distill', ...quickRun(2), '--set', 'teacher.weights=./foreign.safetensors'],
    exitCode: 5,
    code: 'E_WEIGHTS',
  },
  {
    name: 'teacher that is missing',
    words: ['distill', ...quickRun(2), '--set', 'teacher.weights=./nowhere.safetensors'],
    exitCode: 3,
    code: 'E_WEIGHTS_NOT_FOUND',
  },
  {
    name: 'a student that starts from weights that are missing',
    words: ['distill', ...quickRun(2), '--dry-run', '--set', 'student.init=./nowhere.safetensors'],
    exitCode: 3,
    code: 'E_WEIGHTS_NOT_FOUND',
  },
  {
    name: 'a student that starts from weights of another network',
    words: ['distill', ...quickRun(2), '--set', 'student.init=./foreign.safetensors'],
    exitCode: 5,
    code: 'E_WEIGHTS',
  },
  {
    name: 'more processes than there is memory for',
    words: ['distill', ...quickRun(2), '--gpus', '1600', '--set', 'schedule.batchSize=1600'],
    exitCode: 2,
    code: 'E_CONFIG_VALUE',
  },
  { name: 'missing weights to sample', words: ['sample', './nowhere'], exitCode: 3, code: 'E_WEIGHTS_NOT_FOUND' },
  {
    name: 'a prompt list of no prompts',
    words: ['sample', 'x', '--prompts', 'a-file'],
    exitCode: 2,
    code: 'E_USAGE',
  },
  {
    name: 'a prompt for a model of labels',
    words: ['sample', 'builtin:digits-teacher', '--prompt', 'a seven'],
    exitCode: 2,
    code: 'E_USAGE',
  },
  {
    name: 'a GPU where there is none',
    words: ['distill', ...quickRun(2), '--set', 'compute.device=cuda', '--runs-dir', 'never-made'],
    env: { PATH: 'no-venv' },
    exitCode: 3,
    code: 'E_GPU',
  },
  {
    name: 'a job where there is no Slurm, of which no script stays behind',
    words: ['distill', ...quickRun(2), '--launcher', 'slurm', '--runs-dir', 'never-made'],
    env: { PATH: 'no-venv' },
    exitCode: 3,
    code: 'E_SLURM',
  },
  {
    name: 'a log level that is none',
    words: ['runs', 'list'],
    env: { RCM_BRIDGE_LOG_LEVEL: 'inof' },
    exitCode: 2,
    code: 'E_USAGE',
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
    expect(existsSync(join(folder.path, 'never-made'))).toBe(false);
  });

  it('names file, line and column of a key that does not exist, and the nearest one', async () => {
    const result = await runCli(['config', 'check', './unknown-key.yaml'], { cwd: folder.path });
    expect(result.stderr).toMatch(/unknown-key\.yaml:4:3/);
    expect(result.stderr).toContain('teacher.guidance');
  });

  it('a loss that becomes NaN: exit 1, E_NON_FINITE, and the run says so', async () => {
    const wild = ['--set', 'student.optimizer.learningRate=1.0e+30', '--set', 'health.nonFinite.policy=fail'];
    const result = await runCli(['distill', ...quickRun(14), ...wild, '--runs-dir', 'wild'], { cwd: folder.path });
    expect(result.stderr).toContain('E_NON_FINITE');
    expect(result.code, result.stderr).toBe(1);
    expect(result.stderr).not.toMatch(/^\s+at /m);
    const record = JSON.parse(readFileSync(join(onlyRun(join(folder.path, 'wild')), 'run.json'), 'utf8'));
    expect(record).toMatchObject({ state: 'failed', exitCode: 1, error: { code: 'E_NON_FINITE' } });

    const words = ['resume', 'last', '--runs-dir', 'wild', '--from-step', '99'];
    const refused = await runCli(words, { cwd: folder.path });
    expect(refused.code, refused.stderr).toBe(5);
    expect(refused.stderr).toMatch(/E_CHECKPOINT_MISSING: .*step 99/);
  });

  it('a run directory that a live process owns: exit 2, E_RUN_BUSY, and that process goes on', async () => {
    let second: ReturnType<typeof runCli> | undefined;
    const words = ['distill', ...quickRun(200), '--run-dir', 'busy', '--format', 'ndjson'];
    const first = await runCli(words, {
      cwd: folder.path,
      onSpawn: child =>
        whenTraining(child, () => {
          second ??= runCli(['resume', './busy'], { cwd: folder.path }).finally(() => child.kill('SIGINT'));
        }),
    });
    const refused = await second;
    expect(refused?.code, refused?.stderr).toBe(2);
    expect(refused?.stderr).toContain('E_RUN_BUSY');
    expect(first.code, first.stderr).toBe(7);
  });

  it('names the Nodes that work when this one is too old', async () => {
    const bin = JSON.stringify(join(packageRoot(), 'bin', 'rcm-bridge.js'));
    const script = `Object.defineProperty(process.versions, 'node', { value: '18.20.8' }); import(${bin})`;
    const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
    expect(stderr).toMatch(/^E_NODE_VERSION: .*20\.19.*22\.12.*24.*18\.20\.8\.\n.+\n$/);
    expect({ status, stdout }).toEqual({ status: 3, stdout: '' });
  });
});

function whenTraining(child: ChildProcess, act: () => void): void {
  let seen = '';
  child.stdout?.on('data', chunk => {
    seen += String(chunk);
    if (seen.includes('"type":"metric"')) act();
  });
}
