/** `hf:OWNER/NAME@REVISION` and where huggingface_hub keeps it; py/rcm_sidecar/hub/cache.py is the same for Python. */
import fs from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import type { Environment } from '../python/home.ts';

export interface HubLocator {
  readonly repository: string;
  /** A branch, a tag or a commit. */
  readonly revision: string;
}

const mainBranch = 'main';
const pattern = /^hf:([\w-][\w.-]*\/[\w-][\w.-]*)(?:@(\w[\w.-]*(?:\/\w[\w.-]*)*))?$/;

export const isHubLocator = (locator: string): boolean => locator.startsWith('hf:');

/** @throws E_WEIGHTS_NOT_FOUND when it is no such locator */
export function parseHubLocator(locator: string): HubLocator {
  const [, repository, revision = mainBranch] = pattern.exec(locator) ?? [];
  if (repository !== undefined) return { repository, revision };
  throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `${locator} names no repository on the hub.`, {
    hint: 'Write hf:OWNER/NAME or hf:OWNER/NAME@REVISION.',
  });
}

export const hubLocatorText = ({ repository, revision }: HubLocator): string =>
  `hf:${repository}${revision === mainBranch ? '' : `@${revision}`}`;

/** The folder on this machine with the weights of a locator, fetched by this program or another. */
export function cachedSnapshot({ repository, revision }: HubLocator, env: Environment): string | undefined {
  const folder = join(cacheFolder(env), `models--${repository.replace('/', '--')}`);
  const isCommit = fs.existsSync(join(folder, 'snapshots', revision));
  const commit = isCommit ? revision : readReference(join(folder, 'refs', revision));
  if (!commit) return undefined;
  const snapshot = join(folder, 'snapshots', commit);
  return holdsWeights(snapshot) || holdsWeights(join(snapshot, 'transformer')) ? snapshot : undefined;
}

function readReference(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8').trim();
  } catch {
    return undefined;
  }
}

const holdsWeights = (folder: string): boolean =>
  fs.existsSync(folder) && fs.readdirSync(folder).some(name => /\.(safetensors|pth|pt)$/.test(name));

/** By the variables that huggingface_hub reads. */
function cacheFolder(env: Environment): string {
  const home = env.HOME ?? homedir();
  const expanded = (path: string): string => resolve(path.replace(/^~(?=$|[\\/])/, home));
  const cache = env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE;
  if (cache) return expanded(cache);
  if (env.HF_HOME) return join(expanded(env.HF_HOME), 'hub');
  return join(env.XDG_CACHE_HOME || join(home, '.cache'), 'huggingface', 'hub');
}
