import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../src/package-root.ts';
import { testPython } from './python.ts';

/** An interpreter of its own in `folder` that finds the packages of the tests, and those of .dev as if installed. */
export function pythonWithDevTools(folder: string): string {
  execFileSync(testPython(), ['-m', 'venv', '--without-pip', folder]);
  const executable = join(folder, 'bin', 'python3');
  const purelib = (interpreter: string): string =>
    execFileSync(interpreter, ['-I', '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])'], {
      encoding: 'utf8',
    }).trim();
  writeFileSync(join(purelib(executable), 'tests.pth'), `${purelib(testPython())}\n${join(packageRoot(), '.dev')}\n`);
  return executable;
}
