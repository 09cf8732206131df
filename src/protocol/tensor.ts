import type { DtypeName, TensorHeader } from './messages.ts';
import { frameBytes } from './version.ts';

/** A tensor on this side of the border: bytes are little-endian, C order. */
export interface Tensor {
  readonly name: string;
  readonly dtype: DtypeName;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

const itemBytes = {
  u8: 1,
  i8: 1,
  i16: 2,
  i32: 4,
  i64: 8,
  f16: 2,
  bf16: 2,
  f32: 4,
  f64: 8,
  bool: 1,
} as const satisfies Record<DtypeName, number>;

/** Number of bytes a tensor of this dtype and shape takes. */
export function tensorBytes(dtype: DtypeName, shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, itemBytes[dtype]);
}

/**
 * The bytes of a view as frames of at most `max` bytes: views, no copy. The caller must not touch the memory again,
 * because ZeroMQ sends it later without copying.
 *
 * @throws TypeError for shared memory, which zeromq.js would send as the text "[object SharedArrayBuffer]".
 */
export function* tensorFrames(view: ArrayBufferView, max = frameBytes): Generator<Uint8Array> {
  if (view.buffer instanceof SharedArrayBuffer) throw new TypeError('a tensor in shared memory cannot be sent');
  for (let at = 0; at < view.byteLength; at += max)
    yield new Uint8Array(view.buffer, view.byteOffset + at, Math.min(max, view.byteLength - at));
}

/** Headers and frames for some tensors; the first frame after the envelope has number 1. */
export function packTensors(
  tensors: readonly Tensor[],
  max = frameBytes,
): { readonly headers: TensorHeader[]; readonly frames: Uint8Array[] } {
  const headers: TensorHeader[] = [];
  const frames: Uint8Array[] = [];
  for (const { name, dtype, shape, bytes } of tensors) {
    if (bytes.byteLength !== tensorBytes(dtype, shape))
      throw new RangeError(`tensor ${name}: ${bytes.byteLength} bytes do not fit ${dtype} [${shape.join(', ')}]`);
    const first = frames.length + 1;
    frames.push(...tensorFrames(bytes, max));
    headers.push({ name, dtype, shape: [...shape], nbytes: bytes.byteLength, frames: [first, frames.length] });
  }
  return { headers, frames };
}

/**
 * Puts tensors together again. A tensor of one frame is a view of it, a longer one is copied once.
 *
 * @throws RangeError when headers and frames do not fit each other.
 */
export function unpackTensors(
  headers: readonly TensorHeader[],
  frames: readonly Uint8Array[],
  max = frameBytes,
): Tensor[] {
  let next = 1;
  const tensors = headers.map(header => {
    const { name, dtype, shape, nbytes } = header;
    const [first, last] = header.frames;
    const expected = Math.ceil(nbytes / max);
    if (nbytes !== tensorBytes(dtype, shape))
      throw new RangeError(`tensor ${name}: ${nbytes} bytes for ${dtype} [${shape.join(', ')}]`);
    if (first !== next || last !== first + expected - 1)
      throw new RangeError(`tensor ${name}: frames ${first}..${last} out of order`);
    next = last + 1;
    const parts = frames.slice(first - 1, last);
    const bytes = parts.length === 1 ? (parts[0] as Uint8Array) : Buffer.concat(parts);
    if (parts.some(part => part.byteLength > max) || bytes.byteLength !== nbytes)
      throw new RangeError(`tensor ${name}: ${bytes.byteLength} of ${nbytes} bytes came`);
    return { name, dtype, shape, bytes };
  });
  if (next !== frames.length + 1) throw new RangeError(`${frames.length} frames came, ${next - 1} belong to tensors`);
  return tensors;
}
