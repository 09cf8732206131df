import { Packr } from 'msgpackr';

/** A value that would change on its way through msgpack. */
export class CodecError extends TypeError {
  override readonly name = 'CodecError';
}

/*
 * useRecords: Python cannot read msgpackr's records. int64AsType 'auto': 64-bit integers become numbers where exact.
 * encodeUndefinedAsNil: otherwise undefined is an extension type. All measured (spec/bridge.md 5.2).
 */
const packr = new Packr({
  useRecords: false,
  variableMapSize: true,
  encodeUndefinedAsNil: true,
  mapsAsObjects: true,
  // The type declarations lack 'auto', the code has it: a number where exact, else a BigInt.
  int64AsType: 'auto' as 'number',
});

/**
 * Packs a value as msgpack that Python reads back unchanged, into memory of its own (ZeroMQ does not copy what it sends).
 *
 * The one thing lost without an error is the sign of -0, which msgpackr writes as the integer 0.
 *
 * @throws CodecError naming the path of a value that would be altered: typed arrays other than bytes, BigInt, whole
 * numbers outside [-2^31, 2^32), functions, symbols, Map, Set, Date and other class instances.
 */
export function pack(value: unknown): Uint8Array {
  check(value, '$');
  return new Uint8Array(packr.pack(value));
}

/** Unpacks one msgpack value. A 64-bit integer that a number cannot hold becomes a BigInt. */
export function unpack(bytes: Uint8Array): unknown {
  return packr.unpack(bytes);
}

/** Unpacks values that were written one after the other. */
export function unpackMany(bytes: Uint8Array): unknown[] {
  return bytes.byteLength === 0 ? [] : ((packr.unpackMultiple(bytes) as unknown[] | undefined) ?? []);
}

function check(value: unknown, path: string): void {
  switch (typeof value) {
    case 'string':
    case 'boolean':
    case 'undefined':
      return;
    case 'number':
      checkNumber(value, path);
      return;
    case 'object':
      checkObject(value, path);
      return;
    default:
      throw new CodecError(`${path}: a ${typeof value} cannot cross the border`);
  }
}

function checkNumber(value: number, path: string): void {
  // msgpackr writes larger whole numbers as floats, which a strict integer field on the other side refuses. Beyond 2^53
  // a number is a float to everybody.
  if (Number.isSafeInteger(value) && (value < -(2 ** 31) || value >= 2 ** 32))
    throw new CodecError(`${path}: ${value} is outside [-2^31, 2^32) and would not arrive as a whole number`);
}

function checkObject(value: object | null, path: string): void {
  if (value === null || value instanceof Uint8Array) return;
  if (Array.isArray(value)) {
    value.forEach((item, index) => {
      check(item, `${path}[${index}]`);
    });
    return;
  }
  if (ArrayBuffer.isView(value)) throw new CodecError(`${path}: a ${value.constructor.name} must travel as a tensor`);
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null)
    throw new CodecError(`${path}: an instance of ${value.constructor.name} cannot cross the border`);
  for (const [key, item] of Object.entries(value)) check(item, `${path}.${key}`);
}
