import { describe, expect, test } from 'vitest';
import {
  CodecError,
  pack,
  packTensors,
  tensorFrames,
  unpack,
  unpackMany,
  unpackTensors,
} from '../../../src/protocol/index.ts';

describe('what would be altered on the way is refused, with its path', () => {
  test.each([
    ['a typed array', { a: { b: new Float32Array(2) } }, '$.a.b: a Float32Array must travel as a tensor'],
    ['a DataView', [new DataView(new ArrayBuffer(2))], '$[0]: a DataView must travel as a tensor'],
    ['a BigInt', { a: 1n }, '$.a: a bigint'],
    ['2^32', { a: 2 ** 32 }, '$.a: 4294967296 is outside'],
    ['-2^31 - 1', { a: -(2 ** 31) - 1 }, 'outside'],
    ['a function', { a: [() => 1] }, '$.a[0]: a function'],
    ['a symbol', Symbol('s'), '$: a symbol'],
    ['a Map', new Map(), 'an instance of Map'],
    ['a Date', new Date(), 'an instance of Date'],
    ['shared memory', new SharedArrayBuffer(2), 'an instance of SharedArrayBuffer'],
  ])('%s', (_, value, message) => {
    expect(() => pack(value)).toThrow(CodecError);
    expect(() => pack(value)).toThrow(message);
  });
});

test('undefined becomes nil, bytes stay bytes, 64-bit integers come back as numbers where exact', () => {
  expect(unpack(pack({ a: undefined }))).toEqual({ a: null });
  expect([...(unpack(pack(Uint8Array.of(1, 2))) as Uint8Array)]).toEqual([1, 2]);
  expect(unpack(Uint8Array.of(0xcf, 0, 0, 1, 0, 0, 0, 0, 0))).toBe(2 ** 40);
});

test('each packed message has memory of its own: ZeroMQ sends it later without copying', () => {
  const first = pack({ a: 'first' });
  const copy = Uint8Array.from(first);
  for (let index = 0; index < 1000; index += 1) pack({ a: 'x'.repeat(index) });
  expect(first).toEqual(copy);
  expect(first.buffer.byteLength).toBe(first.byteLength);
});

test('values written one after the other are read one after the other', () => {
  expect(unpackMany(Buffer.concat([pack({ a: 1 }), pack('b')]))).toEqual([{ a: 1 }, 'b']);
  expect(unpackMany(new Uint8Array())).toEqual([]);
  expect(unpackMany(pack([1]))).toEqual([[1]]);
});

describe('tensors', () => {
  test('frames are views, in order, of the size asked for', () => {
    const bytes = Uint8Array.from({ length: 10 }, (_, index) => index);
    const frames = [...tensorFrames(bytes.subarray(1), 4)];
    expect(frames.map(frame => [...frame])).toEqual([[1, 2, 3, 4], [5, 6, 7, 8], [9]]);
    expect(frames.every(frame => frame.buffer === bytes.buffer)).toBe(true);
    expect(() => [...tensorFrames(new Uint8Array(new SharedArrayBuffer(4)))]).toThrow('shared memory');
  });

  test('headers that do not fit their frames are refused', () => {
    const tensor = { name: 'x', dtype: 'f32', shape: [3], bytes: new Uint8Array(12) } as const;
    const { headers, frames } = packTensors([tensor], 8);
    expect(unpackTensors(headers, frames, 8)).toMatchObject([{ name: 'x', shape: [3] }]);
    const [header] = headers as [(typeof headers)[0]];
    const wrong = [
      () => unpackTensors([{ ...header, shape: [4] }], frames, 8),
      () => unpackTensors([{ ...header, frames: [2, 3] }], frames, 8),
      () => unpackTensors([{ ...header, frames: [1, 1] }], frames, 8),
      () => unpackTensors(headers, frames.slice(1), 8),
      () => unpackTensors(headers, [...frames, new Uint8Array(1)], 8),
      () => unpackTensors(headers, [new Uint8Array(9), new Uint8Array(3)], 8),
      () => packTensors([{ ...tensor, bytes: new Uint8Array(11) }]),
    ];
    for (const attempt of wrong) expect(attempt).toThrow(RangeError);
  });
});
