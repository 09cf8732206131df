import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from '../src/package-root.ts';
import { testPython } from './python.ts';

export interface CliResult {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CliOptions {
  readonly cwd: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly timeoutMs?: number;
  /** Sees the process as soon as it runs, to signal or kill it. */
  readonly onSpawn?: (child: ChildProcess) => void;
}

/** The built command line: what a user runs. `make test` builds it first. */
export const cliFile = join(packageRoot(), 'bin', 'rcm-bridge.js');

/**
 * Variables of a clean shell, with the interpreter of the tests and a home of its own below `cwd`. Byte code is shared:
 * compiling torch anew in each home takes eight seconds of a processor, diffusers and transformers even longer.
 */
export const cliEnvironment = (cwd: string): NodeJS.ProcessEnv => ({
  PATH: process.env.PATH,
  HOME: cwd,
  TMPDIR: process.env.TMPDIR,
  RCM_BRIDGE_HOME: join(cwd, 'home'),
  RCM_BRIDGE_PYTHON: testPython(),
  PYTHONPYCACHEPREFIX: join(packageRoot(), '.dev', 'pycache'),
  NO_COLOR: '1',
});

/** Runs `rcm-bridge` in `cwd` and resolves when it has ended; ends it by pid when it takes too long. */
export function runCli(words: readonly string[], options: CliOptions): Promise<CliResult> {
  if (!existsSync(join(packageRoot(), 'dist', 'cli', 'main.js')))
    throw new Error('dist/ is missing: run `make build` first.');
  const child = spawn(process.execPath, [cliFile, ...words], {
    cwd: options.cwd,
    env: { ...cliEnvironment(options.cwd), ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  options.onSpawn?.(child);
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', chunk => {
    stdout += String(chunk);
  });
  child.stderr.on('data', chunk => {
    stderr += String(chunk);
  });
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? 100_000);
    child.once('error', reject);
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr });
    });
  });
}

/** An empty folder for one test, and how to remove it. */
export async function temporaryFolder(): Promise<{ readonly path: string; readonly remove: () => Promise<void> }> {
  const path = await realpath(await mkdtemp(join(tmpdir(), 'rcm-test-')));
  return { path, remove: () => rm(path, { recursive: true, force: true, maxRetries: 5 }) };
}

/** Settings under which a digits run takes seconds: few steps, a small batch, few samples, no gates. */
export const quickRun = (steps: number): readonly string[] =>
  [
    `schedule.steps=${steps}`,
    'schedule.batchSize=16',
    'losses.scm.tangentWarmupUpdates=2',
    'evaluation.samples=20',
    'evaluation.teacherSteps=[1]',
    'evaluation.steps=[1]',
    'evaluation.gates=[]',
    'evaluation.previews.everySteps=null',
    'logging.everySteps=1',
    'compute.threads=1',
  ].flatMap(pair => ['--set', pair]);
