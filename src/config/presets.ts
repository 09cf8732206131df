import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../package-root.ts';

/** Names of the configs that are shipped, sorted. */
export function listPresets(): readonly string[] {
  return readdirSync(join(packageRoot(), 'configs'))
    .filter(file => file.endsWith('.yaml'))
    .map(file => file.slice(0, -'.yaml'.length))
    .sort();
}

/** The file of a preset, or undefined if there is none of this name. */
export function presetPath(name: string): string | undefined {
  const file = join(packageRoot(), 'configs', `${name}.yaml`);
  return existsSync(file) ? file : undefined;
}

/** A config is a file if it holds a path separator or has one of these endings; else it is a preset. */
export const isFileName = (source: string): boolean => /[\\/]|\.(ya?ml|json|m?ts|m?js)$/.test(source);
