/** The part of a ZeroMQ socket that sends. */
export interface FrameSocket {
  send(frames: Array<Uint8Array | string>): Promise<void>;
}

/**
 * Serialises sends: zeromq.js throws EBUSY synchronously on a second pending send. One failure does not stop later
 * sends. Frames must not change afterwards: they are sent without copying.
 */
export function createSendQueue(socket: FrameSocket): (frames: ReadonlyArray<Uint8Array | string>) => Promise<void> {
  let tail: Promise<void> = Promise.resolve();
  return frames => {
    const sent = tail.then(async () => {
      await socket.send([...frames]);
    });
    tail = sent.catch(() => undefined);
    return sent;
  };
}
