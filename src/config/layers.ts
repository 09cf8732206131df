import { RcmBridgeError } from '../errors/index.ts';
import type { Origin } from './types.ts';

export type Path = readonly string[];
export type Document = Readonly<Record<string, unknown>>;

/** One source of values. Layers are merged in order; later ones win. */
export interface Layer {
  readonly kind: Exclude<Origin['kind'], 'default'>;
  /** How errors name it: a file, `--set a.b=1`, `RCM_SET_1`. */
  readonly where: string;
  readonly document: Document;
  /** Position of a key, or of its value, where the layer has positions. */
  readonly locate?: (path: Path, part: 'key' | 'value') => Position | undefined;
}

export interface Position {
  readonly line: number;
  readonly column: number;
}

export const isDocument = (value: unknown): value is Document =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Layers merged key by key. Lists are replaced, and so is a block that gets another `kind`. */
export const mergeLayers = (layers: readonly Layer[]): Document =>
  layers.reduce<Document>((below, layer) => merge(below, layer.document), {});

function merge(below: Document, above: Document): Document {
  if (below.kind !== undefined && above.kind !== undefined && below.kind !== above.kind) return above;
  const merged: Record<string, unknown> = { ...below };
  for (const [key, value] of Object.entries(above)) {
    if (value === undefined) continue;
    refusePrototypeKey(key);
    const old = merged[key];
    merged[key] = isDocument(value) ? merge(isDocument(old) ? old : {}, value) : value;
  }
  return merged;
}

function refusePrototypeKey(key: string): void {
  if (key !== '__proto__') return;
  throw new RcmBridgeError('E_CONFIG_UNKNOWN_KEY', 'A config cannot have the key __proto__.', { hint: 'Remove it.' });
}

export function valueAt(document: unknown, path: Path): unknown {
  let value: unknown = document;
  for (const key of path) {
    if (!isDocument(value) || !Object.hasOwn(value, key)) return undefined;
    value = value[key];
  }
  return value;
}

/** Where the value at the path came from: the last layer that has it. */
export function originOf(layers: readonly Layer[], path: Path, part: 'key' | 'value' = 'value'): Origin {
  const layer = layers.findLast(candidate => valueAt(candidate.document, path) !== undefined);
  if (!layer) return { kind: 'default' };
  return { kind: layer.kind, where: layer.where, ...layer.locate?.(path, part) };
}

/** `my.yaml:3:5`, `--set a.b=1`, or an empty text for a default. */
export function describeOrigin(origin: Origin): string {
  if (origin.where === undefined) return '';
  return origin.line === undefined ? origin.where : `${origin.where}:${origin.line}:${origin.column}`;
}
