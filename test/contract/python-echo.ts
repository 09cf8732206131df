import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { pack } from '../../src/protocol/index.ts';
import { fixtures, testPython } from '../python.ts';

export type Group = 'controlToNode' | 'controlToPython' | 'events' | 'blobs';

/** A Python process that decodes each message into its msgspec type and encodes it again. */
export interface Echo {
  send(group: Group, frames: readonly Uint8Array[], frameBytes?: number): Promise<Uint8Array[]>;
  close(): void;
}

export function startEcho(): Echo {
  const child = spawn(testPython(), ['-P', join(fixtures, 'echo.py')], { stdio: ['pipe', 'pipe', 'inherit'] });
  const readBytes = byteReader(child);
  const readNumber = async (): Promise<number> => (await readBytes(4)).readUInt32LE();
  return {
    send: async (group, frames, frameBytes = 4 * 2 ** 20) => {
      const all = [pack([group, frameBytes]), ...frames];
      const parts = all.flatMap(frame => [number(frame.byteLength), frame]);
      child.stdin.write(Buffer.concat([number(all.length), ...parts]));
      const answer: Uint8Array[] = [];
      const count = await readNumber();
      for (let index = 0; index < count; index += 1) answer.push(await readBytes(await readNumber()));
      if (answer[0]?.[0] === 0x21) throw new Error(Buffer.from(answer[0]).toString('utf8').slice(1));
      return answer;
    },
    close: () => child.kill(),
  };
}

function number(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** Reads exact numbers of bytes from a child, in the order asked. */
function byteReader(child: ChildProcessByStdio<Writable, Readable, null>): (count: number) => Promise<Buffer> {
  let held: Buffer = Buffer.alloc(0);
  let ended = false;
  let wake: () => void = () => undefined;
  child.stdout.on('data', (chunk: Buffer) => {
    held = Buffer.concat([held, chunk]);
    wake();
  });
  child.once('exit', () => {
    ended = true;
    wake();
  });
  return async count => {
    while (held.length < count) {
      if (ended) throw new Error('the echo ended');
      await new Promise<void>(resolve => {
        wake = resolve;
      });
    }
    const bytes = held.subarray(0, count);
    held = held.subarray(count);
    return bytes;
  };
}
