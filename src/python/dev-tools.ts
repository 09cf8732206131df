import { readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDirectory, writeFileAtomic } from '../runs/files.ts';
import type { PythonEnvironment } from './find.ts';
import { onPath } from './find.ts';
import type { Environment } from './home.ts';
import { type CommandOptions, type PipCommand, runPip } from './pip.ts';
import { probePython } from './probe.ts';
import { devLockFile } from './requirements.ts';

export interface DevToolsOptions extends CommandOptions {
  readonly python: PythonEnvironment;
  /** An ignored folder such as `.dev`; its content is replaced. */
  readonly target: string;
}

/**
 * Installs py/requirements-dev.lock beside the environment that users get, never into it. triton is left out where
 * torch came with it.
 *
 * @throws RcmBridgeError E_PYTHON_SETUP or E_DISK_FULL.
 */
export async function installDevTools(options: DevToolsOptions): Promise<void> {
  const { python, target } = options;
  const lock = withoutPackages(
    readFileSync(devLockFile(), 'utf8'),
    python.packages.triton === undefined ? [] : ['triton'],
  );
  await rm(target, { recursive: true, force: true });
  makeDirectory(target);
  const requirements = join(target, 'requirements.lock');
  writeFileAtomic(requirements, lock);
  const pip = await pipFor(python.executable, options.env);
  const words = ['install', '--progress-bar', 'off', '--only-binary', ':all:', '--require-hashes', '--no-deps'];
  await runPip(pip, [...words, '--target', target, '-r', requirements], options);
}

/** The lock without the blocks of some packages; a block starts at a line that is not indented. */
export function withoutPackages(lock: string, names: readonly string[]): string {
  let isDropped = false;
  const kept = lock.split('\n').filter(line => {
    if (/^\S/.test(line)) isDropped = names.some(name => line.startsWith(`${name}==`));
    return !isDropped;
  });
  return kept.join('\n');
}

/** The interpreter's own pip, or that of python3 acting for it. */
async function pipFor(executable: string, env: Environment): Promise<PipCommand> {
  const result = await probePython(executable, { requirePackages: false });
  const system = onPath('python3', env);
  if (result.facts?.hasPip || system === undefined) return [executable, '-I', '-m', 'pip'];
  return [system, '-I', '-m', 'pip', '--python', executable];
}
