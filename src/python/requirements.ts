import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { packageRoot } from '../package-root.ts';

type Version = readonly [major: number, minor: number];

export interface PackageRequirement {
  readonly name: string;
  /** First version that works. */
  readonly from?: Version;
  /** First version that does not. */
  readonly below?: Version;
}

export const pythonFrom: Version = [3, 11];
export const pythonBelow: Version = [3, 14];
export const pythonVersions = 'CPython 3.11, 3.12 or 3.13';

/** The torch of the managed environment: with its Triton 3.6.0 the pair that the kernels are verified with. */
export const managedTorch = 'torch==2.11.0';

/** What the sidecar imports. numpy stays below 2.4 for Triton's interpreter. */
export const packageRequirements: readonly PackageRequirement[] = [
  { name: 'torch', from: [2, 11], below: [2, 16] },
  { name: 'numpy', below: [2, 4] },
  { name: 'pyzmq' },
  { name: 'msgspec' },
  { name: 'safetensors' },
];

/** What only some commands import: fetching, encoders, videos, datasets. `env setup --with media` installs all of it. */
export const mediaRequirements = [
  { name: 'huggingface_hub', from: [1, 0] },
  { name: 'diffusers', from: [0, 35] },
  { name: 'transformers', from: [4, 57] },
  { name: 'webdataset' },
  { name: 'av' },
  { name: 'ftfy' },
] as const satisfies readonly PackageRequirement[];

export type MediaPackage = (typeof mediaRequirements)[number]['name'];

export const mediaNames: readonly MediaPackage[] = mediaRequirements.map(({ name }) => name);

/** `torch>=2.11,<2.16` */
export function asPipRequirement({ name, from, below }: PackageRequirement): string {
  const bounds = [...(from ? [`>=${from.join('.')}`] : []), ...(below ? [`<${below.join('.')}`] : [])];
  return name + bounds.join(',');
}

/** Whether a version such as `2.11.0+cpu` lies in the range. */
export function isInRange(version: string, from: Version | undefined, below: Version | undefined): boolean {
  const [major = 0, minor = 0] = version.split('.').map(part => Number.parseInt(part, 10) || 0);
  const isBefore = (bound: Version): boolean => major < bound[0] || (major === bound[0] && minor < bound[1]);
  return !(from && isBefore(from)) && !(below && !isBefore(below));
}

export const lockFile = (): string => join(packageRoot(), 'py', 'requirements.lock');
export const mediaLockFile = (): string => join(packageRoot(), 'py', 'requirements-media.lock');
export const devLockFile = (): string => join(packageRoot(), 'py', 'requirements-dev.lock');

/** Names the exact set of packages; part of the managed environment's name. */
export const lockHash = (): string =>
  createHash('sha256').update(readFileSync(lockFile())).update(managedTorch).digest('hex').slice(0, 16);

/** The same for the media packages; part of the name of the environment that adds them. */
export const mediaLockHash = (): string =>
  createHash('sha256').update(readFileSync(mediaLockFile())).digest('hex').slice(0, 16);
