import type { z } from 'zod';
import { RcmBridgeError } from '../errors/index.ts';
import { type Envelope, envelope, protocolRange, type Tensor, unpack, unpackTensors } from '../protocol/index.ts';

/** A message that has been checked against the schema of its type. */
export interface Received {
  readonly envelope: Envelope;
  readonly body: unknown;
  readonly tensors: readonly Tensor[];
}

/**
 * Decodes and checks one message.
 *
 * @throws RcmBridgeError E_PROTOCOL for anything that is not a message of these types.
 */
export function decodeMessage(frames: readonly Uint8Array[], types: Readonly<Record<string, z.ZodType>>): Received {
  const [head, ...rest] = frames;
  try {
    return checkMessage(unpack(head ?? new Uint8Array()), rest, types);
  } catch (error) {
    if (error instanceof RcmBridgeError) throw error;
    throw protocolError(`A message of the sidecar cannot be read: ${(error as Error).message}`, error);
  }
}

/** Checks an unpacked envelope and its tensor frames. */
export function checkMessage(
  value: unknown,
  frames: readonly Uint8Array[],
  types: Readonly<Record<string, z.ZodType>>,
): Received {
  const head = envelope.safeParse(value);
  if (!head.success) throw protocolError('A message of the sidecar has no valid envelope.', head.error);
  const { v, t, b, x = [] } = head.data;
  if (v !== protocolRange[1]) throw protocolError(`The sidecar sent a message of protocol ${v}.`);
  const type = Object.hasOwn(types, t) ? types[t] : undefined;
  if (type === undefined) throw protocolError(`The sidecar sent a message of the unknown type ${JSON.stringify(t)}.`);
  const body = type.safeParse(b);
  if (!body.success) {
    const issue = body.error.issues[0];
    const where = [t, ...(issue?.path ?? [])].join('.');
    throw protocolError(`The sidecar sent an invalid message: ${where}: ${issue?.message}.`, body.error);
  }
  return { envelope: head.data, body: body.data, tensors: unpackTensors(x, frames) };
}

export function protocolError(message: string, cause?: unknown): RcmBridgeError {
  return new RcmBridgeError('E_PROTOCOL', message, cause === undefined ? {} : { cause });
}
