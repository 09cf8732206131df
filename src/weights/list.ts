/** The networks this version knows and the weights of them that are published, shipped or on this machine. */
import { totalParameters } from '../models/network.ts';
import { networkNamed, networkNames } from '../models/registry.ts';
import type { Environment } from '../python/home.ts';
import { locateWeights } from '../runs/weights.ts';
import { cachedSnapshot, parseHubLocator } from './hub-cache.ts';

export interface ListedNetwork {
  readonly name: string;
  readonly parameters: number;
  /** Size of the weights in each dtype. */
  readonly bytes: { readonly bf16: number; readonly fp32: number };
  /** Where they are published; none for the networks that users train themselves. */
  readonly releases: readonly Release[];
}

export interface Release {
  readonly layout: 'official' | 'diffusers';
  /** `hf:OWNER/NAME`. */
  readonly locator: string;
  /** The weights in the repository. */
  readonly file: string;
  /** A copy on this machine, or null. */
  readonly path: string | null;
}

export interface WeightsList {
  readonly networks: readonly ListedNetwork[];
  /** Weights that come with the package. */
  readonly shipped: readonly { readonly locator: string; readonly path: string }[];
}

const shipped = ['builtin:digits-teacher'];

/** @param env the variables that say where the hub's cache is */
export function listWeights(env: Environment): WeightsList {
  return {
    networks: networkNames.map(name => {
      const { family, sizes, release } = networkNamed(name);
      const parameters = totalParameters(family, sizes);
      const found = (layout: Release['layout'], repository: string, file: string): Release => {
        const locator = `hf:${repository}`;
        return { layout, locator, file, path: cachedSnapshot(parseHubLocator(locator), env) ?? null };
      };
      const releases =
        release === null
          ? []
          : [
              found('official', release.repository, release.file),
              found('diffusers', release.diffusersRepository, 'transformer/'),
            ];
      return { name, parameters, bytes: { bf16: 2 * parameters, fp32: 4 * parameters }, releases };
    }),
    shipped: shipped.map(locator => ({ locator, path: locateWeights(locator) })),
  };
}
