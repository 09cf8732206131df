import { remove } from '../files.ts';
import { lockHolder } from '../lock.ts';
import { readRecord } from '../record.ts';

/** Removes a folder that was made for a log and became no run, unless another process is making one in it. */
export function removeUnused(runDir: string): void {
  if (readRecord(runDir) === undefined && lockHolder(runDir) === undefined) remove(runDir);
}
