import fs, { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  createExclusive,
  makeDirectory,
  openAppender,
  writeFileAtomic,
  writeJsonAtomic,
} from '../../../src/runs/files.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-files-'));
});
afterEach(() => {
  vi.restoreAllMocks();
  rmSync(folder, { recursive: true, force: true });
});

const systemError = (code: string): Error => Object.assign(new Error(code), { code });

describe('writing files', () => {
  test('replaces a file whole and leaves no other file', () => {
    const path = join(folder, 'a.json');
    writeFileAtomic(path, 'one');
    writeJsonAtomic(path, { loss: Number.NaN, gap: Number.NEGATIVE_INFINITY });
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual({ schema: 1, loss: 'NaN', gap: '-Infinity' });
    expect(readdirSync(folder)).toEqual(['a.json']);
  });

  test('keeps the old file when the new one cannot be written', () => {
    const path = join(folder, 'a.json');
    writeFileAtomic(path, 'old');
    vi.spyOn(fs, 'renameSync').mockImplementation(() => {
      throw systemError('ENOSPC');
    });
    expect(() => writeFileAtomic(path, 'new')).toThrow(expect.objectContaining({ code: 'E_DISK_FULL', exitCode: 3 }));
    expect(readFileSync(path, 'utf8')).toBe('old');
    expect(readdirSync(folder)).toEqual(['a.json']);
  });

  test.each(['ENOSPC', 'EDQUOT'])('turns %s of every kind of write into E_DISK_FULL', code => {
    const full = () => {
      throw systemError(code);
    };
    const path = join(folder, 'x');
    const appender = openAppender(path);
    vi.spyOn(fs, 'writeFileSync').mockImplementation(full);
    vi.spyOn(fs, 'appendFileSync').mockImplementation(full);
    vi.spyOn(fs, 'writeSync').mockImplementation(full);
    vi.spyOn(fs, 'mkdirSync').mockImplementation(full);
    vi.spyOn(fs, 'openSync').mockImplementation(full);
    const writes = [
      () => writeFileAtomic(path, ''),
      () => createExclusive(join(folder, 'y'), ''),
      () => appender.append('a\n'),
      () => makeDirectory(join(folder, 'z')),
      () => openAppender(path),
    ];
    for (const write of writes) expect(write).toThrow(expect.objectContaining({ code: 'E_DISK_FULL' }));
  });

  test('passes other errors on as they are', () => {
    expect(() => writeFileAtomic(join(folder, 'no', 'a'), '')).toThrow(expect.objectContaining({ code: 'ENOENT' }));
  });

  test('creates a file only once', () => {
    const path = join(folder, 'lock');
    expect([createExclusive(path, 'mine'), createExclusive(path, 'yours')]).toEqual([true, false]);
    expect(readFileSync(path, 'utf8')).toBe('mine');
  });

  test('ends a line that a crash cut off before it appends', () => {
    const path = join(folder, 'a.ndjson');
    writeFileSync(path, '{"a":1}\n{"cut');
    const appender = openAppender(path);
    appender.append('{"b":2}\n');
    appender.close();
    appender.append('ignored\n');
    expect(readFileSync(path, 'utf8')).toBe('{"a":1}\n{"cut\n{"b":2}\n');
  });

  test('writes all bytes when the system takes them in parts', () => {
    const path = join(folder, 'a');
    const appender = openAppender(path);
    const write = fs.writeSync as unknown as (...words: unknown[]) => number;
    vi.spyOn(fs, 'writeSync').mockImplementation(((fd: number, bytes: Buffer, at: number) =>
      write(fd, bytes, at, 1)) as never);
    appender.append('abc\n');
    expect(readFileSync(path, 'utf8')).toBe('abc\n');
  });
});
