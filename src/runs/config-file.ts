/** config.json: the resolved config of a run, each value with where it came from. */
import fs from 'node:fs';
import { join } from 'node:path';
import type { RcmConfig, ResolvedConfig } from '../config/types.ts';
import { RcmBridgeError } from '../errors/index.ts';
import { writeJsonAtomic } from './files.ts';

export const configName = 'config.json';

export function writeStoredConfig(runDir: string, resolved: ResolvedConfig): void {
  const { config, origins, source } = resolved;
  writeJsonAtomic(join(runDir, configName), { source, config, origins });
}

/** The config a run was started with. @throws E_RUN_DIR when the file is missing or broken */
export const readStoredConfig = (runDir: string): RcmConfig => readStoredResolved(runDir).config;

/** It, and where its values came from. @throws E_RUN_DIR */
export function readStoredResolved(runDir: string): ResolvedConfig {
  try {
    const stored = JSON.parse(fs.readFileSync(join(runDir, configName), 'utf8')) as Partial<ResolvedConfig>;
    const { config, origins = {}, source = 'object' } = stored;
    if (config) return { config, origins, source };
  } catch {
    // Said below: without a config nothing about the run can be trusted.
  }
  throw new RcmBridgeError('E_RUN_DIR', `${join(runDir, configName)} is missing or broken.`, {
    hint: 'This run cannot be used any more; start a new one with `rcm-bridge distill`.',
    details: { runDir },
  });
}
