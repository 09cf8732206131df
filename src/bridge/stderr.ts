import { createWriteStream, type WriteStream } from 'node:fs';
import type { Readable } from 'node:stream';

/** What the sidecar printed, both streams in the order they came. */
export interface CapturedOutput {
  /** The last 64 KiB as text. */
  tail(): string;
  /** Bytes seen so far; `since` gives the text after such a mark, as far as the tail reaches. */
  mark(): number;
  since(mark: number): string;
  /** Resolves when both streams have ended. */
  readonly ended: Promise<void>;
  close(): void;
}

const tailBytes = 64 * 1024;

/**
 * Reads stdout and stderr of a child for ever, so that it never blocks on a full pipe, keeps the tail and appends all to
 * a file if one is given. A disk that is full or slow costs the file, never the child.
 */
export function captureOutput(streams: readonly Readable[], file: string | undefined): CapturedOutput {
  const sink = file === undefined ? undefined : createWriteStream(file, { flags: 'a' });
  let usable = sink !== undefined;
  sink?.on('error', () => {
    usable = false;
    for (const stream of streams) stream.resume();
  });
  let kept: Buffer = Buffer.alloc(0);
  let seen = 0;
  const take = (chunk: Buffer, stream: Readable): void => {
    seen += chunk.length;
    kept = Buffer.concat([kept, chunk]).subarray(-tailBytes);
    if (usable && sink && !sink.write(chunk)) pauseUntilDrained(stream, sink);
  };
  const ends = streams.map(
    stream =>
      new Promise<void>(resolve => {
        stream.on('data', (chunk: Buffer) => take(chunk, stream));
        stream.once('close', resolve);
        stream.once('error', () => resolve());
      }),
  );
  return {
    tail: () => kept.toString('utf8'),
    mark: () => seen,
    since: mark => kept.subarray(Math.max(0, kept.length - (seen - mark))).toString('utf8'),
    ended: Promise.all(ends).then(() => undefined),
    close: () => {
      for (const stream of streams) stream.destroy();
      sink?.end();
    },
  };
}

function pauseUntilDrained(stream: Readable, sink: WriteStream): void {
  if (stream.isPaused()) return;
  stream.pause();
  sink.once('drain', () => stream.resume());
}
