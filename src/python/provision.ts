import { existsSync } from 'node:fs';
import { rename, rm, statfs } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, writeJsonAtomic } from '../runs/files.ts';
import { type RunLock, takeLock } from '../runs/lock.ts';
import { type FindPythonOptions, namedInterpreter, onPath, type PythonEnvironment, resolvePython } from './find.ts';
import { type Environment, managedHome } from './home.ts';
import { interpreterOf, managedFolder, readManaged, sealName, thisPlatform } from './managed.ts';
import { runPip } from './pip.ts';
import { type PythonFacts, probePython } from './probe.ts';
import { isInRange, lockFile, lockHash, packageRequirements, pythonVersions } from './requirements.ts';
import { planTorch, type TorchPlan } from './torch-source.ts';
import { openVirtualEnvironment } from './virtual-environment.ts';

/** How long one setup waits for another one of the same environment. */
const lockPatienceMs = 30 * 60_000;

/** true: agreed; false: not agreed; a function asks. */
export type Consent = boolean | ((question: string) => Promise<boolean>);

export interface SetupOptions {
  /** `auto` (default), `cpu`, `cuda` or a pip requirement. */
  readonly torch?: string | undefined;
  readonly consent: Consent;
  readonly offline?: boolean | undefined;
  readonly env: Environment;
  readonly cwd: string;
  readonly home?: string | undefined;
  /** The interpreter to make the environment from; default: the first supported one on PATH. */
  readonly base?: string | undefined;
  /** Sentences for people, and pip's own lines. */
  readonly onProgress?: ((line: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Free bytes of the disk that holds a folder; for tests. */
  readonly freeBytes?: ((folder: string) => Promise<number>) | undefined;
}

/** The interpreter to use, made first if none passes and somebody agrees. An explicit one is never replaced. */
export async function ensurePython(
  options: FindPythonOptions & Omit<SetupOptions, 'base'>,
): Promise<PythonEnvironment> {
  try {
    return await resolvePython(options);
  } catch (error) {
    if (namedInterpreter(options) !== undefined || !isRcmBridgeError(error) || error.code !== 'E_PYTHON_NOT_FOUND')
      throw error;
    return setupManaged(options);
  }
}

/**
 * Makes the managed environment, or returns the sealed one without calling pip or the network.
 *
 * @throws RcmBridgeError E_PYTHON_NOT_FOUND, E_PYTHON_VERSION, E_OFFLINE, E_CONSENT, E_DISK_FULL, E_TORCH_CPU,
 *   E_PYTHON_VENV or E_PYTHON_SETUP; AbortedError.
 */
export async function setupManaged(options: SetupOptions): Promise<PythonEnvironment> {
  const home = options.home ?? managedHome(options.env);
  const base = await findBase(options, home);
  const choice = options.torch ?? 'auto';
  const folder = managedFolder(home, choice, base.version);
  const sealed = await openSealed(folder, home);
  if (sealed) return sealed;
  if (options.offline) {
    throw new RcmBridgeError(
      'E_OFFLINE',
      'The Python environment is not there yet, and --offline forbids to download it.',
      {
        hint: 'Run once with a network: rcm-bridge env setup --yes',
      },
    );
  }
  const plan = await planTorch({ choice, signal: options.signal });
  await checkFreeSpace(home, plan, options.freeBytes ?? freeBytesOf);
  await askForConsent(options.consent, folder, plan);
  const lock = await takeSetupLock(folder, options);
  try {
    return (await openSealed(folder, home)) ?? (await build(folder, { options, home, base, plan, choice }));
  } finally {
    lock.release();
  }
}

/** A sealed environment that still passes the probe; a broken one (its base is gone) is made again. */
async function openSealed(folder: string, home: string): Promise<PythonEnvironment | undefined> {
  const managed = readManaged(folder);
  if (!managed) return undefined;
  const result = await probePython(managed.executable, { home });
  if (!result.usable) return undefined;
  const { version, packages } = result.facts;
  return { executable: managed.executable, version, packages, source: 'managed' };
}

/** In order of preference: the usual name first. */
const baseNames = ['python3', 'python3.12', 'python3.11', 'python3.13'];

async function findBase(options: SetupOptions, home: string): Promise<PythonFacts> {
  const named = options.base === undefined ? baseNames : [options.base];
  const seen: string[] = [];
  for (const name of named) {
    const executable = /[\\/]/.test(name) ? resolve(options.cwd, name) : onPath(name, options.env);
    if (executable === undefined) continue;
    const result = await probePython(executable, { home, requirePackages: false, signal: options.signal });
    if (result.usable) return result.facts;
    seen.push(`${executable} ${result.facts?.version ?? `(${result.reason})`}`);
  }
  if (seen.length > 0) {
    throw new RcmBridgeError('E_PYTHON_VERSION', `The sidecar needs ${pythonVersions}; found ${seen.join(', ')}.`, {
      hint: 'Install one of these versions, or name an interpreter with --python.',
    });
  }
  throw new RcmBridgeError('E_PYTHON_NOT_FOUND', 'There is no python3 on PATH.', {
    hint: `Install ${pythonVersions}.`,
  });
}

async function freeBytesOf(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}

async function checkFreeSpace(
  home: string,
  plan: TorchPlan,
  freeBytesOn: (folder: string) => Promise<number>,
): Promise<void> {
  const freeBytes = await freeBytesOn(existingParent(home));
  if (freeBytes >= plan.neededBytes) return;
  const inGb = (bytes: number): string => (bytes / 1e9).toFixed(1);
  throw new RcmBridgeError(
    'E_DISK_FULL',
    `The Python environment needs ${inGb(plan.neededBytes)} GB free; ${home} has ${inGb(freeBytes)} GB.`,
    {
      hint: 'Free some space, or set RCM_BRIDGE_HOME to a folder on a larger disk.',
    },
  );
}

const existingParent = (path: string): string => (existsSync(path) ? path : existingParent(dirname(path)));

async function askForConsent(consent: Consent, folder: string, plan: TorchPlan): Promise<void> {
  const question = `Install PyTorch and the packages of the sidecar from ${plan.source} (${plan.size}) into ${folder}?`;
  const agreed = typeof consent === 'function' ? await consent(question) : consent;
  if (agreed) return;
  throw new RcmBridgeError('E_CONSENT', `No Python environment yet; it takes ${plan.size} in ${folder}.`, {
    hint: 'Agree with: rcm-bridge env setup --yes',
  });
}

async function takeSetupLock(folder: string, options: SetupOptions): Promise<RunLock> {
  const lockFolder = join(dirname(folder), `.lock-${basename(folder)}`);
  makeDirectory(lockFolder);
  const patient = takeLock(lockFolder, 0).catch((error: unknown) => {
    if (!isRcmBridgeError(error) || error.code !== 'E_RUN_BUSY') throw error;
    options.onProgress?.('Another process is making the same environment; waiting for it.');
    return takeLock(lockFolder, lockPatienceMs);
  });
  return patient.catch((error: unknown) => {
    if (!isRcmBridgeError(error) || error.code !== 'E_RUN_BUSY') throw error;
    throw new RcmBridgeError('E_PYTHON_SETUP', `Another process has been making ${folder} for too long.`, {
      hint: 'Wait for it, or end it and run the command again.',
      cause: error,
    });
  });
}

interface Build {
  readonly options: SetupOptions;
  readonly home: string;
  readonly base: PythonFacts;
  readonly plan: TorchPlan;
  readonly choice: string;
}

/** Builds beside the final place and renames. What an interrupted setup left is used. */
async function build(folder: string, { options, home, base, plan, choice }: Build): Promise<PythonEnvironment> {
  const temporary = `${folder}.tmp`;
  const { env, onProgress, signal } = options;
  const command = { env, onLine: onProgress, signal };
  // Said once it is sure to begin: a refusal has two lines and no more.
  const pip = await openVirtualEnvironment(temporary, base, command);
  onProgress?.(`Making a Python ${base.version} environment in ${folder} (${plan.size}).`);
  const python = interpreterOf(temporary);
  if (!(await hasTorch(python))) {
    onProgress?.(`Installing torch from ${plan.source}.`);
    await runPip(pip, ['install', '--progress-bar', 'off', ...plan.pipArguments], command);
  }
  await runPip(
    pip,
    ['install', '--progress-bar', 'off', '--only-binary', ':all:', '--require-hashes', '--no-deps', '-r', lockFile()],
    command,
  );
  const result = await probePython(python);
  if (!result.usable) {
    throw new RcmBridgeError('E_PYTHON_SETUP', `The new environment does not work: ${result.reason}.`, {
      hint: 'Remove it and try again.',
    });
  }
  const { version, packages } = result.facts;
  const seal = {
    lockHash: lockHash(),
    platform: thisPlatform(),
    torchChoice: choice,
    torchSource: plan.source,
    python: version,
    packages,
  };
  writeJsonAtomic(join(temporary, sealName), { ...seal, sealedAt: new Date().toISOString() });
  await rm(folder, { recursive: true, force: true });
  await rename(temporary, folder);
  return (
    (await openSealed(folder, home)) ??
    Promise.reject(new RcmBridgeError('E_PYTHON_SETUP', `${folder} does not start.`))
  );
}

async function hasTorch(python: string): Promise<boolean> {
  const { facts } = await probePython(python, { requirePackages: false });
  const torch = packageRequirements.find(({ name }) => name === 'torch');
  const version = facts?.packages.torch;
  return version !== undefined && isInRange(version, torch?.from, torch?.below);
}
