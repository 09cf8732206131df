import { join } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { writeFileAtomic } from '../runs/files.ts';
import type { PythonEnvironment } from './find.ts';
import { type ManagedEnvironment, mediaFolder } from './managed.ts';
import { type CommandOptions, type PipCommand, runPip } from './pip.ts';
import { probePython } from './probe.ts';
import { mediaLockFile, mediaLockHash, mediaNames } from './requirements.ts';
import { makeSealed } from './sealed.ts';

/** Measured on Linux x86-64 with CPython 3.11: what pip downloads, and what lies on the disk in the end. */
export const mediaSize = 'about 0.08 GB to download and 0.45 GB on disk';
/** Free space for wheels and their content at once. */
export const mediaNeededBytes = 800_000_000;

/**
 * Makes the environment that adds the media packages to the sealed one `below`, which is only read: the new folder has
 * an interpreter of its own and finds the packages of `below` after its own, so torch lies on the disk once.
 *
 * @throws RcmBridgeError E_PYTHON_VENV, E_PYTHON_SETUP or E_DISK_FULL; AbortedError.
 */
export async function addMedia(
  below: ManagedEnvironment,
  home: string,
  command: CommandOptions,
): Promise<PythonEnvironment> {
  const folder = mediaFolder(below.folder);
  const base = await probePython(below.executable);
  if (!base.usable) throw new RcmBridgeError(base.code, `${below.executable}: ${base.reason}.`, { hint: base.hint });
  const { torchChoice, torchSource } = below.seal;
  const recipe = {
    folder,
    base: base.facts,
    needs: mediaNames,
    announcement: `Adding the media packages in ${folder} (${mediaSize}).`,
    install: (pip: PipCommand, python: string) => install(pip, python, base.facts.sitePackages, command),
    seal: { torchChoice, torchSource, media: { lockHash: mediaLockHash(), below: below.folder } },
  };
  return makeSealed(recipe, home, command);
}

async function install(
  pip: PipCommand,
  python: string,
  sitePackagesBelow: string | null,
  command: CommandOptions,
): Promise<void> {
  const words = ['install', '--progress-bar', 'off', '--only-binary', ':all:', '--require-hashes', '--no-deps'];
  await runPip(pip, [...words, '-r', mediaLockFile()], command);
  // Only now, so that pip never sees the packages below and cannot remove one.
  const { facts } = await probePython(python, { requirePackages: false });
  if (!facts?.sitePackages || !sitePackagesBelow) {
    throw new RcmBridgeError('E_PYTHON_SETUP', `${python} does not say where its packages are.`, {
      hint: 'Make the environment from another Python: rcm-bridge env setup --with media --python <path>',
    });
  }
  writeFileAtomic(join(facts.sitePackages, 'rcm-bridge-below.pth'), `${sitePackagesBelow}\n`);
}
