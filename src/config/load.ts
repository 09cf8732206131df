import { basename, dirname, extname, resolve } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { nearest } from '../nearest.ts';
import { explainOrigins } from './explain.ts';
import { type Document, isDocument, type Layer, mergeLayers } from './layers.ts';
import { isFileName, listPresets, presetPath } from './presets.ts';
import { readConfigFile, shownPath } from './read-file.ts';
import { environmentLayers, flagLayers } from './set-values.ts';
import type { LoadConfigOptions, RcmConfigInput, ResolvedConfig } from './types.ts';

export { listPresets, presetPath } from './presets.ts';
export type { LoadConfigOptions, Origin, RcmConfig, RcmConfigInput, ResolvedConfig } from './types.ts';

/**
 * Resolves a preset, a file or an object: what it extends, RCM_SET_<n>, `--set`, defaults, absolute paths.
 *
 * @throws RcmBridgeError with E_CONFIG_NOT_FOUND, E_CONFIG_SYNTAX, E_CONFIG_TYPES, E_CONFIG_EXTENDS_LOOP,
 *   E_CONFIG_UNKNOWN_KEY, E_CONFIG_VALUE, E_CONFIG_NOT_YET, E_TYPESCRIPT_API, or E_USAGE for a pair without `=`.
 */
export async function loadConfig(source: string | RcmConfigInput, options: LoadConfigOptions): Promise<ResolvedConfig> {
  const files = typeof source === 'string' ? await fileLayers(source, options) : await objectLayers(source, options);
  const layers = [...files, ...(await environmentLayers(options.env)), ...(await flagLayers(options.set))];
  const [{ checkConfig }, { withAbsolutePaths }] = await Promise.all([
    import('./check.ts'),
    import('./absolute-paths.ts'),
  ]);
  const document = await withBlockDefaults(mergeLayers(layers), nameOf(source));
  const config = withAbsolutePaths(checkConfig(document, layers), options.cwd);
  return freeze({ config, origins: explainOrigins(config, layers), source: sourceName(source, options.cwd) });
}

/** Defaults that depend on what the layers say: the name, and the sizes of the default network. */
async function withBlockDefaults(merged: Document, name: string): Promise<Document> {
  const model = merged.model ?? {};
  const named = { name, ...merged };
  if (!isDocument(model)) return named;
  const { digitsOverrides } = await import('./blocks/model.ts');
  const isDefaultNetwork = model.name === undefined && model.overrides === undefined;
  const given = isDocument(model.overrides)
    ? Object.entries(model.overrides).filter(([, value]) => value !== null)
    : undefined;
  const overrides = isDefaultNetwork ? digitsOverrides : given ? Object.fromEntries(given) : model.overrides;
  return { ...named, model: overrides === undefined ? model : { ...model, overrides } };
}

function nameOf(source: string | RcmConfigInput): string {
  if (typeof source !== 'string') return 'config';
  const plain = basename(source, isFileName(source) ? extname(source) : '').replace(/[^A-Za-z0-9._-]+/g, '-');
  return plain.replace(/^[^A-Za-z0-9]+/, '').slice(0, 64) || 'config';
}

const sourceName = (source: string | RcmConfigInput, cwd: string): string =>
  typeof source !== 'string' ? 'object' : isFileName(source) ? resolve(cwd, source) : source;

/** The layers of a file, the one it extends first. */
async function fileLayers(source: string, options: LoadConfigOptions): Promise<readonly Layer[]> {
  const file = locateConfig(source, options.cwd);
  const layer = await readConfigFile(file, { kind: 'file', cwd: options.cwd, typeCheck: options.typeCheck ?? false });
  return withExtended(layer, dirname(file), [file], options);
}

async function objectLayers(source: RcmConfigInput, options: LoadConfigOptions): Promise<readonly Layer[]> {
  const layer: Layer = { kind: 'file', where: 'config object', document: source as Document };
  return withExtended(layer, options.cwd, [], options);
}

async function withExtended(
  layer: Layer,
  folder: string,
  chain: readonly string[],
  options: LoadConfigOptions,
): Promise<readonly Layer[]> {
  const { extends: parent, ...document } = layer.document;
  const own = { ...layer, document };
  if (parent === undefined || parent === null) return [own];
  const { where } = layer;
  if (typeof parent !== 'string') {
    throw new RcmBridgeError(
      'E_CONFIG_VALUE',
      `${position(layer)}: extends takes a preset or a file, not ${JSON.stringify(parent)}.`,
      {
        hint: 'Example: extends: digits-rcm',
      },
    );
  }
  const file = locateConfig(parent, folder, position(layer));
  if (chain.includes(file)) {
    const shown = [...chain, file].map(entry => shownPath(entry, options.cwd));
    throw new RcmBridgeError('E_CONFIG_EXTENDS_LOOP', `${position(layer)}: ${shown.join(' extends ')}.`, {
      hint: `Remove one of these extends lines, for example that of ${where}.`,
    });
  }
  const next = await readConfigFile(file, { kind: 'extends', cwd: options.cwd, typeCheck: options.typeCheck ?? false });
  return [...(await withExtended(next, dirname(file), [...chain, file], options)), own];
}

function position(layer: Layer): string {
  const found = layer.locate?.(['extends'], 'value');
  return found ? `${layer.where}:${found.line}:${found.column}` : layer.where;
}

/** The file of a preset or a path. `where` says who asked, for errors. */
function locateConfig(source: string, folder: string, where?: string): string {
  if (isFileName(source)) return resolve(folder, source);
  const preset = presetPath(source);
  if (preset !== undefined) return preset;
  const close = nearest(source, listPresets());
  throw new RcmBridgeError(
    'E_CONFIG_NOT_FOUND',
    `${where === undefined ? '' : `${where}: `}there is no preset ${JSON.stringify(source)}.`,
    {
      hint:
        close === undefined
          ? `Presets: ${listPresets().join(', ')}. A file needs its ending, such as ${source}.yaml.`
          : `Did you mean ${close}?`,
    },
  );
}

function freeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value;
  for (const inner of Object.values(value)) freeze(inner);
  return Object.freeze(value);
}
