import { RcmBridgeError } from '../errors/index.ts';
import type { Document, Layer } from './layers.ts';
import type { LoadConfigOptions } from './types.ts';

/** RCM_SET_<n>=key.path=value, in the order of n. */
export async function environmentLayers(env: LoadConfigOptions['env'] = {}): Promise<readonly Layer[]> {
  const named = Object.entries(env)
    .map(([name, pair]) => ({ name, pair, order: Number(/^RCM_SET_(\d+)$/.exec(name)?.[1] ?? Number.NaN) }))
    .filter(entry => !Number.isNaN(entry.order) && entry.pair !== undefined)
    .sort((left, right) => left.order - right.order);
  return Promise.all(named.map(({ name, pair }) => pairLayer('env', name, pair ?? '')));
}

/** The `--set` pairs of the command line, or the `set` object of the API. */
export async function flagLayers(set: LoadConfigOptions['set'] = []): Promise<readonly Layer[]> {
  if (isPairs(set)) return Promise.all(set.map(pair => pairLayer('flag', `--set ${pair}`, pair)));
  return Object.entries(set).map(([path, value]) => ({
    kind: 'flag',
    where: `set['${path}']`,
    document: nested(splitPath(path, `set['${path}']`), value),
  }));
}

const isPairs = (set: NonNullable<LoadConfigOptions['set']>): set is readonly string[] => Array.isArray(set);

async function pairLayer(kind: 'env' | 'flag', where: string, pair: string): Promise<Layer> {
  const equals = pair.indexOf('=');
  if (equals <= 0) {
    throw new RcmBridgeError('E_USAGE', `${where}: expected key.path=value.`, {
      hint: 'Example: --set schedule.steps=500',
    });
  }
  const path = splitPath(pair.slice(0, equals).trim(), where);
  return { kind, where, document: nested(path, await readValue(pair.slice(equals + 1), where)) };
}

function splitPath(path: string, where: string): readonly string[] {
  const keys = path.split('.');
  if (keys.every(key => key !== '')) return keys;
  throw new RcmBridgeError('E_USAGE', `${where}: the key path has an empty part.`, {
    hint: 'Example: --set schedule.steps=500',
  });
}

async function readValue(text: string, where: string): Promise<unknown> {
  const { parseDocument } = await import('yaml');
  const document = parseDocument(text, { schema: 'core', merge: false });
  const problem = document.errors[0];
  if (!problem) return document.toJS();
  const reason = problem.message.split(/ at line|\n/)[0];
  throw new RcmBridgeError('E_CONFIG_SYNTAX', `${where}: the value is no YAML: ${reason}.`, {
    hint: 'Put quotes around text with special characters, and around the whole pair for the shell.',
  });
}

const nested = (path: readonly string[], value: unknown): Document =>
  path.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value) as Document;
