import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { packageRoot } from '../src/package-root.ts';
import { testPython } from './python.ts';

export type TinyModel = 'wan_original' | 'wan_diffusers' | 'cosmos_original' | 'cosmos_diffusers';

/** Whole models with tiny random weights, in the folders that `weights fetch --with-encoders` brings: `folder`/`name`. */
export function makeTinyModels(folder: string, names: readonly TinyModel[]): void {
  const parts = ['.dev', 'py', 'kernels', 'test/py'].map(part => join(packageRoot(), part));
  execFileSync(testPython(), ['-m', 'encoders.tiny_models', folder, ...names], {
    env: { ...process.env, PYTHONPATH: parts.join(':') },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
}
