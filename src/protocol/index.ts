/**
 * The wire protocol between Node and the Python sidecar: message schemas, the msgpack codec, tensors as frames.
 *
 * @module
 */
export { CodecError, pack, unpack, unpackMany } from './codec.ts';
export * from './messages.ts';
export { packTensors, type Tensor, tensorBytes, tensorFrames, unpackTensors } from './tensor.ts';
export { agreeOnProtocol, frameBytes, protocolRange } from './version.ts';
