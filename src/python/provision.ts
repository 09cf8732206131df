import { existsSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import { type FindPythonOptions, namedInterpreter, onPath, type PythonEnvironment, resolvePython } from './find.ts';
import { type Environment, managedHome } from './home.ts';
import { listManaged, type ManagedEnvironment, managedFolder, mediaFolder, readManaged } from './managed.ts';
import { addMedia, mediaNeededBytes, mediaSize } from './media.ts';
import { type CommandOptions, runPip } from './pip.ts';
import { type PythonFacts, probePython } from './probe.ts';
import { isInRange, lockFile, mediaNames, packageRequirements, pythonVersions } from './requirements.ts';
import { makeSealed, openSealed, type Recipe } from './sealed.ts';
import { planTorch, type TorchPlan } from './torch-source.ts';

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

/**
 * The interpreter to use, made first if none passes and somebody agrees; with `needs`, one that has those media
 * packages. An explicit one is never replaced and never written to.
 *
 * @throws RcmBridgeError as `resolvePython`, `setupManaged` and `setupMedia` do.
 */
export async function ensurePython(
  options: FindPythonOptions & Omit<SetupOptions, 'base'>,
): Promise<PythonEnvironment> {
  try {
    return await resolvePython(options);
  } catch (error) {
    if (namedInterpreter(options) !== undefined || !isRcmBridgeError(error)) throw error;
    const isMissing = error.code === 'E_PYTHON_NOT_FOUND' || error.code === 'E_PYTHON_PACKAGES';
    if (!isMissing) throw error;
    return (options.needs ?? []).length > 0 ? setupMedia(options) : setupManaged(options);
  }
}

/**
 * Makes the managed environment, or returns the sealed one without calling pip or the network.
 *
 * @throws RcmBridgeError E_PYTHON_NOT_FOUND, E_PYTHON_VERSION, E_OFFLINE, E_CONSENT, E_DISK_FULL, E_TORCH_CPU,
 *   E_PYTHON_VENV or E_PYTHON_SETUP; AbortedError.
 */
export const setupManaged = (options: SetupOptions): Promise<PythonEnvironment> => makeManaged(options);

/** `addition`: what will be installed after it, in the words of the question and of the command. */
async function makeManaged(options: SetupOptions, addition = { and: '', with: '' }): Promise<PythonEnvironment> {
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
  await checkFreeSpace(home, plan.neededBytes, options);
  const question = `Install PyTorch and the packages of the sidecar from ${plan.source} (${plan.size}) into ${folder}${addition.and}?`;
  await askForConsent(options.consent, question, {
    refusal: `No Python environment yet; it takes ${plan.size} in ${folder}${addition.and}.`,
    command: `rcm-bridge env setup${addition.with} --yes`,
  });
  return makeSealed(torchRecipe(folder, base, plan, choice), home, commandOf(options));
}

/**
 * Makes the environment with the media packages, and the one below it where that is missing; or returns the sealed one
 * without calling pip or the network. An environment that a run uses is never changed: this one is beside it.
 *
 * @throws RcmBridgeError as `setupManaged`.
 */
export async function setupMedia(options: SetupOptions): Promise<PythonEnvironment> {
  const home = options.home ?? managedHome(options.env);
  const below = await sealedBelow(options, home);
  const sealed = below && (await openSealed(mediaFolder(below.folder), home, mediaNames));
  if (sealed) return sealed;
  if (options.offline) {
    throw new RcmBridgeError(
      'E_OFFLINE',
      'The media packages are not there yet, and --offline forbids to download them.',
      {
        hint: 'Run once with a network: rcm-bridge env setup --with media --yes',
      },
    );
  }
  if (below === undefined) {
    // One question for both.
    await makeManaged(options, { and: `, then the media packages (${mediaSize}) beside it`, with: ' --with media' });
    return setupMedia({ ...options, consent: true });
  }
  await checkFreeSpace(home, mediaNeededBytes, options);
  const folder = mediaFolder(below.folder);
  const question = `Install the media packages (huggingface_hub, diffusers, transformers and others, ${mediaSize}) into ${folder}?`;
  await askForConsent(options.consent, question, {
    refusal: `The media packages are not there yet; they take ${mediaSize} in ${folder}.`,
    command: 'rcm-bridge env setup --with media --yes',
  });
  return addMedia(below, home, commandOf(options));
}

/** The sealed environment that the media packages are added to: that of the asked torch, else the newest. */
async function sealedBelow(options: SetupOptions, home: string): Promise<ManagedEnvironment | undefined> {
  const isAsked = options.torch !== undefined || options.base !== undefined;
  const known = isAsked
    ? [readManaged(managedFolder(home, options.torch ?? 'auto', (await findBase(options, home)).version))]
    : listManaged(home).filter(({ seal }) => seal.media === undefined);
  for (const environment of known) if (environment && (await openSealed(environment.folder, home))) return environment;
  return undefined;
}

const commandOf = ({ env, onProgress, signal }: SetupOptions): CommandOptions => ({ env, onLine: onProgress, signal });

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

async function checkFreeSpace(home: string, neededBytes: number, { freeBytes }: SetupOptions): Promise<void> {
  const free = await (freeBytes ?? freeBytesOf)(existingParent(home));
  if (free >= neededBytes) return;
  const inGb = (bytes: number): string => (bytes / 1e9).toFixed(1);
  throw new RcmBridgeError(
    'E_DISK_FULL',
    `The Python environment needs ${inGb(neededBytes)} GB free; ${home} has ${inGb(free)} GB.`,
    {
      hint: 'Free some space, or set RCM_BRIDGE_HOME to a folder on a larger disk.',
    },
  );
}

const existingParent = (path: string): string => (existsSync(path) ? path : existingParent(dirname(path)));

interface Refusal {
  /** What is missing, its size and place. */
  readonly refusal: string;
  /** What to type to agree. */
  readonly command: string;
}

async function askForConsent(consent: Consent, question: string, { refusal, command }: Refusal): Promise<void> {
  const agreed = typeof consent === 'function' ? await consent(question) : consent;
  if (!agreed) throw new RcmBridgeError('E_CONSENT', refusal, { hint: `Agree with: ${command}` });
}

function torchRecipe(folder: string, base: PythonFacts, plan: TorchPlan, choice: string): Recipe {
  return {
    folder,
    base,
    announcement: `Making a Python ${base.version} environment in ${folder} (${plan.size}).`,
    seal: { torchChoice: choice, torchSource: plan.source },
    install: async (pip, python, command) => {
      if (!(await hasTorch(python))) {
        command.onLine?.(`Installing torch from ${plan.source}.`);
        await runPip(pip, ['install', '--progress-bar', 'off', ...plan.pipArguments], command);
      }
      const words = ['install', '--progress-bar', 'off', '--only-binary', ':all:', '--require-hashes', '--no-deps'];
      await runPip(pip, [...words, '-r', lockFile()], command);
    },
  };
}

async function hasTorch(python: string): Promise<boolean> {
  const { facts } = await probePython(python, { requirePackages: false });
  const torch = packageRequirements.find(({ name }) => name === 'torch');
  const version = facts?.packages.torch;
  return version !== undefined && isInRange(version, torch?.from, torch?.below);
}
