import { readFile } from 'node:fs/promises';
import { events, type SidecarEvent, type Tensor, unpackMany } from '../protocol/index.ts';
import { checkMessage, decodeMessage, protocolError, type Received } from './message.ts';

/** Bulk data of the sidecar. */
export interface SidecarBlob {
  readonly type: 'sample';
  readonly time: number;
  readonly run: string | undefined;
  readonly body: {
    readonly step: number;
    readonly kind: 'preview' | 'evaluation' | 'request';
    readonly title: string;
    readonly rows: readonly string[];
    readonly columns: readonly string[];
  };
  /** By name; a sample has `pixels`, u8 [rows, columns, H, W, 1 or 3]. */
  readonly tensors: Readonly<Record<string, Tensor>>;
}

/** Turns frames into events, in order and without a gap. */
export interface EventStream {
  /** Number of the last event that was handled, -1 before the first. */
  readonly lastSeq: number;
  /** Handles one message; waits for the handler. Throws E_PROTOCOL for a gap or an invalid message. */
  take(frames: readonly Uint8Array[]): Promise<void>;
}

/**
 * @param handle gets each event once; the next one waits until its promise resolves
 */
export function createEventStream(handle: (event: SidecarEvent) => void | Promise<void>): EventStream {
  let lastSeq = -1;

  const deliver = async (message: Received): Promise<void> => {
    const { t, seq, ts, run } = message.envelope;
    if (seq !== lastSeq + 1) throw protocolError(`Events ${lastSeq + 1} to ${(seq ?? 0) - 1} are missing (${t} came).`);
    lastSeq = seq;
    await handle({ type: t, seq, time: ts, run, body: message.body } as SidecarEvent);
  };

  /** Node was slow and the sidecar wrote events to a file: take them from there. */
  const replay = async (first: number, last: number, path: string): Promise<void> => {
    if (first !== lastSeq + 1) throw protocolError(`Events ${lastSeq + 1} to ${first - 1} are missing.`);
    const values = unpackMany(await readFile(path));
    for (const value of values) {
      const message = checkMessage(value, [], events);
      const seq = message.envelope.seq ?? -1;
      if (seq >= first && seq <= last) await deliver(message);
    }
    if (lastSeq !== last) throw protocolError(`Events ${lastSeq + 1} to ${last} are missing in ${path}.`);
  };

  return {
    get lastSeq() {
      return lastSeq;
    },
    take: async frames => {
      const message = decodeMessage(frames, events);
      if (message.envelope.t !== 'undelivered') return deliver(message);
      const body = message.body as { first: number; last: number; path: string };
      await replay(body.first, body.last, body.path);
      if (message.envelope.seq !== lastSeq + 1) throw protocolError(`Event ${lastSeq + 1} is missing.`);
      lastSeq += 1;
    },
  };
}
