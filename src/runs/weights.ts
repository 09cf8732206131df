/** Weights locators as Node reads them: is there something at the place that a config or a user names? */
import fs from 'node:fs';
import { join } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { packageRoot } from '../package-root.ts';

/**
 * The path of a locator: a path as it is, or that of shipped weights: `builtin:digits-teacher` lies in
 * py/rcm_sidecar/assets/digits/teacher. @throws E_WEIGHTS_NOT_FOUND
 */
export function locateWeights(locator: string): string {
  const path = locator.startsWith('builtin:') ? shippedPath(locator) : locator;
  if (path !== undefined && fs.existsSync(path)) return path;
  const hint = locator.startsWith('builtin:')
    ? 'Shipped weights: builtin:digits-teacher.'
    : 'Give a run, an export folder or a weights file.';
  throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `There are no weights at ${locator}.`, { hint });
}

function shippedPath(locator: string): string | undefined {
  const [, set, name] = /^builtin:([a-z0-9]+)-([a-z0-9-]+)$/.exec(locator) ?? [];
  return set && name ? join(packageRoot(), 'py', 'rcm_sidecar', 'assets', set, name) : undefined;
}
