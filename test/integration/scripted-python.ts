import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fixtures, testPython } from '../python.ts';
import { allPackages } from '../unit/python/fake-python.ts';
import type { Script } from './fake-sidecar.ts';

/** `loadMs`: how long it loads first; `refuse`: the code of an error that its own checks end with. */
export interface ScriptedJob extends Script {
  readonly loadMs?: number;
  readonly refuse?: string;
}

/**
 * An interpreter for processes that a test cannot reach into: it passes the probe without torch, and as sidecar it does
 * what the script says. Returns its path.
 */
export function writeScriptedPython(path: string, script: ScriptedJob): string {
  const facts = {
    executable: path,
    implementation: 'CPython',
    version: '3.11.7',
    platform: 'linux',
    packages: allPackages,
    sitePackages: null,
    hasVenv: true,
    hasEnsurePip: true,
    hasPip: true,
  };
  const text = `#!/bin/sh
case "$*" in
  "-I -c "*) echo '${JSON.stringify(facts)}' ;;
  *) exec '${testPython()}' -P -u -X faulthandler '${join(fixtures, 'scripted_sidecar.py')}' '${JSON.stringify(script)}' ;;
esac
`;
  writeFileSync(path, text);
  chmodSync(path, 0o755);
  return path;
}
