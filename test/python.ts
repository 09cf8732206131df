import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { packageRoot } from '../src/package-root.ts';

let found: string | undefined;

/**
 * The Python the tests run: RCM_TEST_PYTHON (set by `make test`), else the one `rcm-bridge env path` names. Fails when
 * there is none or it lacks what the sidecar needs before torch: tests are never skipped for want of Python.
 */
export function testPython(): string {
  found ??= checked(process.env.RCM_TEST_PYTHON || managedPython());
  return found;
}

/** Folder of fixture files. */
export const fixtures = join(packageRoot(), 'test', 'fixtures');

function managedPython(): string {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [join(packageRoot(), 'bin/rcm-bridge.js'), 'env', 'path'],
    {
      encoding: 'utf8',
    },
  );
  if (status === 0) return stdout.trim();
  throw new Error(`No Python for the tests: run \`make setup\`, or set RCM_TEST_PYTHON.\n${stderr}`);
}

function checked(python: string): string {
  const { status, stderr, error } = spawnSync(python, ['-I', '-c', 'import zmq, msgspec'], { encoding: 'utf8' });
  if (status === 0) return python;
  throw new Error(`${python} cannot run the tests: ${error?.message ?? stderr}`);
}
