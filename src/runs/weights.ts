/** Weights locators as Node reads them: is there something at the place that a config or a user names? */
import fs from 'node:fs';
import { dirname, join } from 'node:path';
import type { RcmConfig } from '../config/types.ts';
import { RcmBridgeError } from '../errors/index.ts';
import { type NetworkName, networkNamed, suggestNetwork } from '../models/registry.ts';
import { packageRoot } from '../package-root.ts';
import type { Environment } from '../python/home.ts';
import { cachedSnapshot, isHubLocator, parseHubLocator } from '../weights/hub-cache.ts';

/** Weights that a config names, by the key that names them. */
export interface NamedWeights {
  readonly key: 'teacher.weights' | 'student.init' | 'critic.init';
  /** A path, builtin:NAME or hf:OWNER/NAME@REVISION. */
  readonly locator: string;
  /** With LoRA, what student and critic start from: adapters, not a network. */
  readonly adapter: boolean;
}

type Roles = Pick<RcmConfig, 'model' | 'teacher' | 'student' | 'critic' | 'method'>;

/** Where the teacher of a config lies: `model` is the folder of the whole model. */
export const teacherLocator = ({ model, teacher }: Pick<RcmConfig, 'model' | 'teacher'>): string =>
  teacher.weights === 'model' ? (model.path ?? 'model') : teacher.weights;

/** The weights a distillation reads; a critic only where the method has one. */
export function namedWeights(config: Roles): readonly NamedWeights[] {
  const { student, critic, method } = config;
  const hasCritic = method === 'rcm' || method === 'dmd';
  const adapter = student.lora !== null;
  const starts: readonly NamedWeights[] = [
    { key: 'student.init', locator: student.init, adapter },
    ...(hasCritic ? [{ key: 'critic.init', locator: critic.init, adapter } as const] : []),
  ];
  const own = starts.filter(({ locator }) => locator !== 'teacher');
  return [{ key: 'teacher.weights', locator: teacherLocator(config), adapter: false }, ...own];
}

/**
 * The path of a locator: a path as it is, or that of shipped weights: `builtin:digits-teacher` lies in
 * py/rcm_sidecar/assets/digits/teacher; or the folder of fetched ones in the hub's cache. `network`: whose weights they should be. @throws E_WEIGHTS_NOT_FOUND
 */
export function locateWeights(locator: string, network?: NetworkName, env: Environment = process.env): string {
  if (isHubLocator(locator)) return locateFetched(locator, env);
  const path = locator.startsWith('builtin:') ? shippedPath(locator) : locator;
  if (path !== undefined && fs.existsSync(path)) return path;
  const hint = locator.startsWith('builtin:')
    ? 'Shipped weights: builtin:digits-teacher.'
    : (howToFetch(locator, network) ?? 'Give a file, a folder, builtin:NAME or hf:OWNER/NAME.');
  throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `There are no weights at ${locator}.`, { hint });
}

/** Where what goes with weights lies, beside them: sampler.json and the label table. */
export const folderOf = (path: string): string => (fs.statSync(path).isDirectory() ? path : dirname(path));

function locateFetched(locator: string, env: Environment): string {
  const path = cachedSnapshot(parseHubLocator(locator), env);
  if (path !== undefined) return path;
  throw new RcmBridgeError('E_WEIGHTS_NOT_FOUND', `${locator} is not on this machine.`, {
    hint: `Fetch it: rcm-bridge weights fetch ${locator}`,
  });
}

/** The locator of a network's published weights that somebody may have meant by another name. */
export function suggestedLocator(name: string): string | undefined {
  const network = suggestNetwork(name);
  const release = network === undefined ? null : networkNamed(network).release;
  return release === null ? undefined : `hf:${release.repository}`;
}

/** The command that brings weights here, where they are published; the files it brings in either layout. */
export function howToFetch(locator: string, network?: NetworkName): string | undefined {
  if (locator.startsWith('hf:')) return `Fetch them: rcm-bridge weights fetch ${locator}`;
  const release = network === undefined ? null : networkNamed(network).release;
  if (release === null) return undefined;
  const { repository, file, diffusersRepository } = release;
  const fetch = `Fetch them: rcm-bridge weights fetch hf:${repository}`;
  return repository === diffusersRepository
    ? `${fetch} (${file}, or transformer/ for diffusers); or mend the path.`
    : `${fetch} (${file}) or hf:${diffusersRepository} (transformer/); or mend the path.`;
}

function shippedPath(locator: string): string | undefined {
  const [, set, name] = /^builtin:([a-z0-9]+)-([a-z0-9-]+)$/.exec(locator) ?? [];
  return set && name ? join(packageRoot(), 'py', 'rcm_sidecar', 'assets', set, name) : undefined;
}
