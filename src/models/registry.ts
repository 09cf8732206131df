/** Networks by name, for what TypeScript has to know before Python starts. A contract test compares it with Python. */
import { nearest } from '../nearest.ts';
import { cosmosPredict2 } from './cosmos-predict2.ts';
import { type Family, type Network, type SizeProblem, type Sizes, totalParameters } from './network.ts';
import { wan21 } from './wan2-1.ts';

const networks = { ...wan21, ...cosmosPredict2 };

export type NetworkName = keyof typeof networks;

export const networkNames = Object.keys(networks) as [NetworkName, ...NetworkName[]];

export const networkNamed = (name: NetworkName): Network => networks[name] as unknown as Network;

/**
 * The network somebody may have meant: a slip of the keys, the name on the hub, or some parts of a name that fit one
 * network only, such as `cosmos-2b`.
 */
export function suggestNetwork(name: string): NetworkName | undefined {
  const close = nearest(name, networkNames);
  if (close !== undefined) return close as NetworkName;
  const parts = name
    .toLowerCase()
    .split(/[^a-z0-9.]+/)
    .filter(part => part !== '');
  const fits = networkNames.filter(known => {
    const { release } = networkNamed(known);
    const all = `${known} ${release?.repository ?? ''}`.toLowerCase().split(/[^a-z0-9.]+/);
    return parts.every(part => all.some(word => word.startsWith(part)));
  });
  return fits.length === 1 && parts.length > 0 ? fits[0] : undefined;
}

/** What `model.overrides` may hold; null removes an inherited one. */
export type Overrides = Readonly<Record<string, number | readonly number[] | null | undefined>>;

/** A network with the sizes of a config. */
export interface SizedNetwork {
  readonly name: NetworkName;
  readonly family: Family;
  readonly sizes: Sizes;
  readonly parameters: number;
}

export type Sized =
  | { readonly network: SizedNetwork }
  | { readonly code: 'E_NETWORK_OVERRIDE' | 'E_NETWORK_SIZE'; readonly problems: readonly SizeProblem[] };

/** A named network with other sizes, or what is wrong with them: the rules of Python's `networks.build`. */
export function sizedNetwork(name: NetworkName, overrides: Overrides): Sized {
  const { family, sizes: own } = networkNamed(name);
  const given = Object.entries(overrides).filter(([, value]) => value !== null && value !== undefined);
  const foreign = given.filter(([key]) => !Object.hasOwn(own, key));
  if (foreign.length > 0) {
    return {
      code: 'E_NETWORK_OVERRIDE',
      problems: foreign.map(([key]) => foreignOverride(name, key, Object.keys(own))),
    };
  }
  const sizes: Sizes = { ...own, ...Object.fromEntries(given) };
  const problems = family.problems(sizes);
  if (problems.length > 0) return { code: 'E_NETWORK_SIZE', problems };
  return { network: { name, family, sizes, parameters: totalParameters(family, sizes) } };
}

/** Key names that no network has are found by the schema; this one belongs to another family. */
const foreignOverride = (name: NetworkName, key: string, known: readonly string[]): SizeProblem => ({
  key,
  text: `is no setting of ${name}`,
  hint: `Remove it, or set it to null where it is inherited; ${name} has ${known.join(', ')}.`,
});
