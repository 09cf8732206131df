import { existsSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { RcmBridgeError } from '../errors/index.ts';
import { interpreterOf } from './managed.ts';
import { type CommandOptions, type PipCommand, runCommand } from './pip.ts';
import { type PythonFacts, probePython } from './probe.ts';

/**
 * Makes a virtual environment, or goes on with one that an interrupted setup left. Resolves with the words that start a
 * pip for it. Without ensurepip the pip of the base interpreter is used.
 *
 * @throws RcmBridgeError E_PYTHON_VENV if neither can be had.
 */
export async function openVirtualEnvironment(
  folder: string,
  base: PythonFacts,
  options: CommandOptions,
): Promise<PipCommand> {
  const python = interpreterOf(folder);
  const left = existsSync(python) ? await probePython(python, { requirePackages: false }) : undefined;
  if (left?.usable) return left.facts.hasPip ? [python, '-I', '-m', 'pip'] : outsidePip(folder, base, options);
  await rm(folder, { recursive: true, force: true });
  if (base.hasVenv && base.hasEnsurePip) {
    const made = await runCommand([base.executable, '-I', '-m', 'venv', folder], options);
    if (made.code === 0) return [python, '-I', '-m', 'pip'];
    await rm(folder, { recursive: true, force: true });
  }
  if (!base.hasVenv) throw noVenv(base, 'it has no venv module');
  const pip = await outsidePip(folder, base, options);
  const made = await runCommand([base.executable, '-I', '-m', 'venv', '--without-pip', folder], options);
  if (made.code !== 0) throw noVenv(base, `python -m venv failed: ${made.lines.at(-1) ?? 'it said nothing'}`);
  return pip;
}

async function outsidePip(folder: string, base: PythonFacts, options: CommandOptions): Promise<PipCommand> {
  const { code, lines } = await runCommand([base.executable, '-I', '-m', 'pip', '--version'], {
    ...options,
    onLine: undefined,
  });
  const version = Number.parseFloat(/^pip (\d+\.\d+)/m.exec(lines.join('\n'))?.[1] ?? '0');
  // `--python` came with pip 22.3.
  if (code === 0 && version >= 22.3) return [base.executable, '-I', '-m', 'pip', '--python', interpreterOf(folder)];
  throw noVenv(
    base,
    code === 0 ? `it has no ensurepip, and its pip ${version} is too old` : 'it has neither ensurepip nor pip',
  );
}

function noVenv(base: PythonFacts, reason: string): RcmBridgeError {
  const short = base.version.split('.').slice(0, 2).join('.');
  return new RcmBridgeError('E_PYTHON_VENV', `${base.executable} can make no virtual environment: ${reason}.`, {
    hint: isDebian()
      ? `Install it: sudo apt-get install python${short}-venv`
      : `Install the venv and pip packages of Python ${short}, on Debian and Ubuntu python${short}-venv.`,
  });
}

function isDebian(): boolean {
  try {
    return /^ID(_LIKE)?=.*(debian|ubuntu)/m.test(readFileSync('/etc/os-release', 'utf8'));
  } catch {
    return false;
  }
}
