import { rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, writeJsonAtomic } from '../runs/files.ts';
import { type RunLock, takeLock } from '../runs/lock.ts';
import type { PythonEnvironment } from './find.ts';
import { interpreterOf, type ManagedSeal, readManaged, sealName, thisPlatform } from './managed.ts';
import type { CommandOptions, PipCommand } from './pip.ts';
import { type PythonFacts, probePython } from './probe.ts';
import { lockHash, type MediaPackage } from './requirements.ts';
import { openVirtualEnvironment } from './virtual-environment.ts';

/** How long one setup waits for another one of the same environment. */
const lockPatienceMs = 30 * 60_000;

/** What goes into one sealed environment. */
export interface Recipe {
  readonly folder: string;
  /** The interpreter it is made from. */
  readonly base: PythonFacts;
  /** Media packages that it must have in the end. */
  readonly needs?: readonly MediaPackage[];
  /** Said once it is sure to begin: a refusal has two lines and no more. */
  readonly announcement: string;
  /** Puts the packages in; what an interrupted call left is there already. */
  readonly install: (pip: PipCommand, python: string, command: CommandOptions) => Promise<void>;
  readonly seal: Pick<ManagedSeal, 'torchChoice' | 'torchSource' | 'media'>;
}

/** A sealed environment that still passes the probe; a broken one (its base is gone) is made again. */
export async function openSealed(
  folder: string,
  home: string,
  needs: readonly MediaPackage[] = [],
): Promise<PythonEnvironment | undefined> {
  const managed = readManaged(folder);
  if (!managed) return undefined;
  const result = await probePython(managed.executable, { home, needs });
  if (!result.usable) return undefined;
  const { version, packages } = result.facts;
  return { executable: managed.executable, version, packages, source: 'managed' };
}

/**
 * Makes a sealed environment, or returns the one that another process has made meanwhile.
 *
 * @throws RcmBridgeError E_PYTHON_VENV, E_PYTHON_SETUP or E_DISK_FULL; AbortedError.
 */
export async function makeSealed(recipe: Recipe, home: string, command: CommandOptions): Promise<PythonEnvironment> {
  const lock = await takeSetupLock(recipe.folder, command.onLine);
  try {
    return (await openSealed(recipe.folder, home, recipe.needs)) ?? (await build(recipe, home, command));
  } finally {
    lock.release();
  }
}

async function takeSetupLock(folder: string, say: ((line: string) => void) | undefined): Promise<RunLock> {
  const lockFolder = join(dirname(folder), `.lock-${basename(folder)}`);
  makeDirectory(lockFolder);
  const patient = takeLock(lockFolder, 0).catch((error: unknown) => {
    if (!isRcmBridgeError(error) || error.code !== 'E_RUN_BUSY') throw error;
    say?.('Another process is making the same environment; waiting for it.');
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

/** Builds beside the final place and renames. What an interrupted setup left is used. */
async function build(recipe: Recipe, home: string, command: CommandOptions): Promise<PythonEnvironment> {
  const { folder, needs } = recipe;
  const temporary = `${folder}.tmp`;
  const pip = await openVirtualEnvironment(temporary, recipe.base, command);
  command.onLine?.(recipe.announcement);
  const python = interpreterOf(temporary);
  await recipe.install(pip, python, command);
  const result = await probePython(python, { needs });
  if (!result.usable) {
    throw new RcmBridgeError('E_PYTHON_SETUP', `The new environment does not work: ${result.reason}.`, {
      hint: `Remove ${temporary} and try again.`,
    });
  }
  const { version, packages } = result.facts;
  const seal = { lockHash: lockHash(), platform: thisPlatform(), ...recipe.seal, python: version, packages };
  writeJsonAtomic(join(temporary, sealName), { ...seal, sealedAt: new Date().toISOString() });
  await rm(folder, { recursive: true, force: true });
  await rename(temporary, folder);
  return (
    (await openSealed(folder, home, needs)) ??
    Promise.reject(new RcmBridgeError('E_PYTHON_SETUP', `${folder} does not start.`))
  );
}
