import { createSendQueue } from './send-queue.ts';

type Frames = readonly Uint8Array[];

/** The three bound sockets of one sidecar. A receive yields undefined once the sockets are closed. */
export interface Sockets {
  receiveControl(): Promise<Frames | undefined>;
  receiveEvent(): Promise<Frames | undefined>;
  receiveBlob(): Promise<Frames | undefined>;
  /** Sends to the peer of this identity; rejects with EHOSTUNREACH when it is not connected. */
  sendControl(identity: Uint8Array, frames: Frames): Promise<void>;
  close(): void;
}

/** Above this ZeroMQ drops the connection: a bound on memory. The protocol's own limit is checked with an error. */
const maxControlBytes = 64 * 2 ** 20;
/**
 * Messages, not bytes. ZeroMQ reads no further once this many wait, and what it has not read is lost when the sidecar
 * dies then (measured): so not too small.
 */
const eventHighWaterMark = 1000;
const blobHighWaterMark = 2;

/** Binds ROUTER (control), PULL (events) and PULL (blobs). Loads ZeroMQ on first use. */
export async function bindSockets(addresses: {
  readonly ctl: string;
  readonly evt: string;
  readonly blob: string;
}): Promise<Sockets> {
  const { Pull, Router, context } = await import('zeromq');
  // Without this the process never exits while a message is unsent.
  context.blocky = false;
  // mandatory with sendTimeout 0: a send to a peer that is gone rejects instead of vanishing or waiting for ever.
  const control = new Router({ mandatory: true, sendTimeout: 0, linger: 0, maxMessageSize: maxControlBytes });
  const event = new Pull({ receiveHighWaterMark: eventHighWaterMark, linger: 0 });
  const blob = new Pull({ receiveHighWaterMark: blobHighWaterMark, linger: 0 });
  const all = [control, event, blob];
  const close = (): void => {
    for (const socket of all) if (!socket.closed) socket.close();
  };
  try {
    await Promise.all([control.bind(addresses.ctl), event.bind(addresses.evt), blob.bind(addresses.blob)]);
  } catch (error) {
    close();
    throw error;
  }
  const send = createSendQueue({ send: frames => control.send(frames as [Uint8Array, Uint8Array]) });
  return {
    receiveControl: () => receive(control),
    receiveEvent: () => receive(event),
    receiveBlob: () => receive(blob),
    sendControl: (identity, frames) => send([identity, ...frames]),
    close,
  };
}

/** One message; undefined when the socket was closed, which rejects (EAGAIN) or throws at once (EBADF). */
async function receive(socket: {
  readonly closed: boolean;
  receive(): Promise<Uint8Array[]>;
}): Promise<Frames | undefined> {
  if (socket.closed) return undefined;
  try {
    return await socket.receive();
  } catch (error) {
    if (socket.closed) return undefined;
    throw error;
  }
}
