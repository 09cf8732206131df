/**
 * The one place that writes files. A full disk becomes E_DISK_FULL here and nowhere else.
 * Calls go through the default import, so that a test can replace them and inject ENOSPC.
 */
import fs from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { toJson } from './json.ts';

/** Creates a folder and its parents. @throws E_DISK_FULL */
export function makeDirectory(path: string): void {
  guarded(path, () => fs.mkdirSync(path, { recursive: true }));
}

/** Replaces a file so that a reader sees the old content or the new one, never a part. @throws E_DISK_FULL */
export function writeFileAtomic(path: string, content: string | Uint8Array): void {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  guarded(path, () => {
    try {
      fs.writeFileSync(temporary, content);
      fs.renameSync(temporary, path);
    } catch (error) {
      removeQuietly(temporary);
      throw error;
    }
  });
}

/** Writes a JSON document with `"schema": 1` first. @throws E_DISK_FULL */
export function writeJsonAtomic(path: string, document: Readonly<Record<string, unknown>>): void {
  writeFileAtomic(path, `${toJson({ schema: 1, ...document }, 2)}\n`);
}

/** Creates a file that must not exist yet; false when it does. @throws E_DISK_FULL */
export function createExclusive(path: string, content: string): boolean {
  return guarded(path, () => {
    try {
      fs.writeFileSync(path, content, { flag: 'wx' });
      return true;
    } catch (error) {
      if (errorCode(error) === 'EEXIST') return false;
      throw error;
    }
  });
}

export interface Appender {
  /** Appends text that ends with a newline. @throws E_DISK_FULL */
  append(text: string): void;
  close(): void;
}

/** Opens a file for appending whole lines. A line that a crash cut off is ended first, so that it spoils only itself. */
export function openAppender(path: string): Appender {
  const descriptor = guarded(path, () => fs.openSync(path, 'a+'));
  let open = true;
  const append = (text: string): void => {
    if (open) guarded(path, () => writeAll(descriptor, Buffer.from(text)));
  };
  if (endsInsideALine(descriptor)) append('\n');
  return {
    append,
    close: () => {
      if (!open) return;
      open = false;
      fs.closeSync(descriptor);
    },
  };
}

/** A write may take only a part of the bytes when the disk is nearly full. */
function writeAll(descriptor: number, bytes: Buffer): void {
  for (let written = 0; written < bytes.length; ) written += fs.writeSync(descriptor, bytes, written);
}

function endsInsideALine(descriptor: number): boolean {
  const { size } = fs.fstatSync(descriptor);
  if (size === 0) return false;
  const last = Buffer.alloc(1);
  fs.readSync(descriptor, last, 0, 1, size - 1);
  return last[0] !== 0x0a;
}

/** A descriptor of a file that grows, for a process that writes to it by itself; close it. @throws E_DISK_FULL */
export function openForAppending(path: string): number {
  return guarded(path, () => fs.openSync(path, 'a'));
}

/** Gives a file that is never written again a second name; copies it where the file system cannot. @throws E_DISK_FULL */
export function shareFile(from: string, to: string): void {
  guarded(to, () => {
    try {
      fs.linkSync(from, to);
    } catch (error) {
      if (['ENOENT', 'ENOSPC', 'EDQUOT'].includes(errorCode(error) ?? '')) throw error;
      fs.copyFileSync(from, to, fs.constants.COPYFILE_FICLONE);
    }
  });
}

/** Removes a file or a folder with all in it; what is missing already is fine. */
export function remove(path: string): void {
  fs.rmSync(path, { recursive: true, force: true });
}

function removeQuietly(path: string): void {
  try {
    fs.rmSync(path, { force: true });
  } catch {
    // The first error is the one to report.
  }
}

function guarded<T>(path: string, write: () => T): T {
  try {
    return write();
  } catch (error) {
    const code = errorCode(error);
    if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error;
    throw new RcmBridgeError('E_DISK_FULL', `No space left to write ${path}.`, {
      hint: 'Free some space, then go on with `rcm-bridge resume`.',
      details: { path },
      cause: error,
    });
  }
}

const errorCode = (error: unknown): string | undefined => (error as NodeJS.ErrnoException | undefined)?.code;
