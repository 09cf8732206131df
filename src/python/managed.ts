import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { lockHash, mediaLockHash } from './requirements.ts';

/** environment.json of a managed environment; it is written last, so its presence is the seal. */
export interface ManagedSeal {
  readonly schema: 1;
  readonly lockHash: string;
  readonly platform: string;
  /** `auto`, `cpu`, `cuda` or a pip requirement, as asked for. */
  readonly torchChoice: string;
  /** Where torch came from. */
  readonly torchSource: string;
  readonly python: string;
  readonly packages: Readonly<Record<string, string>>;
  /** Set where the environment adds the media packages to those of another one, which it never changes. */
  readonly media?: { readonly lockHash: string; readonly below: string };
  readonly sealedAt: string;
}

export interface ManagedEnvironment {
  readonly folder: string;
  readonly executable: string;
  readonly seal: ManagedSeal;
}

export const sealName = 'environment.json';
export const thisPlatform = (): string => `${process.platform}-${process.arch}`;
export const environmentsFolder = (home: string): string => join(home, 'envs');

export const interpreterOf = (folder: string): string =>
  process.platform === 'win32' ? join(folder, 'Scripts', 'python.exe') : join(folder, 'bin', 'python3');

/** The folder of one managed environment: a hash of lock, torch choice, Python version (`3.11`) and platform. */
export function managedFolder(home: string, torchChoice: string, pythonVersion: string): string {
  const parts = [lockHash(), torchChoice, pythonVersion.split('.').slice(0, 2).join('.'), thisPlatform()];
  const hash = createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 16);
  return join(environmentsFolder(home), hash);
}

/** The folder that adds the media packages to the environment in the folder `below`. */
export function mediaFolder(below: string): string {
  const hash = createHash('sha256').update(JSON.stringify([below, mediaLockHash()]));
  return join(dirname(below), hash.digest('hex').slice(0, 16));
}

/** Sealed environments that fit this version of the package and this platform, the newest first. */
export function listManaged(home: string): readonly ManagedEnvironment[] {
  const root = environmentsFolder(home);
  if (!existsSync(root)) return [];
  return readdirSync(root)
    .flatMap(name => readManaged(join(root, name)) ?? [])
    .filter(({ seal }) => seal.lockHash === lockHash() && seal.platform === thisPlatform())
    .filter(({ seal }) => seal.media === undefined || seal.media.lockHash === mediaLockHash())
    .sort((left, right) => right.seal.sealedAt.localeCompare(left.seal.sealedAt));
}

/** The environment in the folder if it is sealed, and the one it adds to is. One under construction ends in `.tmp`. */
export function readManaged(folder: string): ManagedEnvironment | undefined {
  if (folder.endsWith('.tmp')) return undefined;
  try {
    const seal = JSON.parse(readFileSync(join(folder, sealName), 'utf8')) as ManagedSeal;
    if (seal.media && !existsSync(interpreterOf(seal.media.below))) return undefined;
    return { folder, executable: interpreterOf(folder), seal };
  } catch {
    return undefined;
  }
}
