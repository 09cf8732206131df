/** What crosses between the process that uses `rcm-bridge/interactive` and the forked child that owns pythonia. */

/** A value that has a meaning on both sides. Python's dicts arrive as Map when a key is not text, else as an object. */
export type PythonValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | readonly PythonValue[]
  | { readonly [key: string]: PythonValue }
  | ReadonlyMap<PythonValue, PythonValue>;

export interface PythonFrame {
  readonly file: string;
  readonly line: number;
  readonly function: string;
  readonly text: string;
}

export interface HostRequest {
  readonly id: number;
  readonly request: string;
}

export type HostReply =
  | { readonly id: number; readonly text: string }
  | { readonly id: number; readonly failed: string };

type Tagged = { readonly $: string; readonly v: unknown };

const isTagged = (value: unknown): value is Tagged =>
  typeof value === 'object' && value !== null && '$' in value && 'v' in value;

/** JSON data of py/interactive_objects.py to values: tags become NaN, bigint, bytes, objects or Map. */
export function decodeValue(data: unknown): PythonValue {
  if (Array.isArray(data)) return data.map(decodeValue);
  if (!isTagged(data)) return data as PythonValue;
  switch (data.$) {
    case 'float':
      return Number(data.v);
    case 'int':
      return BigInt(String(data.v));
    case 'bytes':
      return new Uint8Array(Buffer.from(String(data.v), 'base64'));
    default:
      return decodeMap(data.v as readonly (readonly [unknown, unknown])[]);
  }
}

function decodeMap(pairs: readonly (readonly [unknown, unknown])[]): PythonValue {
  const decoded = pairs.map(([key, value]) => [decodeValue(key), decodeValue(value)] as const);
  if (decoded.every(([key]) => typeof key === 'string')) return Object.fromEntries(decoded as [string, PythonValue][]);
  return new Map(decoded);
}

/** Values to JSON data that py/interactive_objects.py reads. Refuses what has no Python meaning. */
export function encodeValue(value: unknown, reference: (value: unknown) => number | undefined): unknown {
  const ref = reference(value);
  if (ref !== undefined) return { $: 'ref', v: ref };
  if (typeof value === 'number' && !Number.isFinite(value)) return { $: 'float', v: String(value) };
  if (typeof value === 'bigint') return { $: 'int', v: value.toString() };
  if (value === null || ['string', 'number', 'boolean'].includes(typeof value)) return value;
  if (value instanceof Uint8Array) return { $: 'bytes', v: Buffer.from(value).toString('base64') };
  if (Array.isArray(value)) return value.map(item => encodeValue(item, reference));
  if (value instanceof Map || isPlainObject(value)) {
    const pairs = value instanceof Map ? [...value] : Object.entries(value);
    return { $: 'map', v: pairs.map(([key, item]) => [encodeValue(key, reference), encodeValue(item, reference)]) };
  }
  throw new TypeError(`a ${typeof value} has no meaning in Python`);
}

const isPlainObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && [Object.prototype, null].includes(Object.getPrototypeOf(value));
