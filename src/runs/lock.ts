/** The run directory's lock: one owner process at a time. */
import fs from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RcmBridgeError } from '../errors/index.ts';
import { createExclusive, remove } from './files.ts';
import { isAlive, isThisProcess, type Owner, thisOwner } from './owner.ts';
import { readRecord } from './record.ts';

const lockName = 'lock';
const retryMs = 50;

export interface RunLock {
  release(): void;
}

/**
 * Takes the lock of a run directory, also from an owner that has died.
 * `patienceMs` is how long to wait for a living owner that is about to leave.
 * @throws E_RUN_BUSY
 */
export async function takeLock(runDir: string, patienceMs = 0): Promise<RunLock> {
  const path = join(runDir, lockName);
  const deadline = Date.now() + patienceMs;
  for (;;) {
    const holder = lockHolder(runDir);
    if (holder === undefined && createExclusive(path, JSON.stringify(thisOwner())))
      return { release: () => release(path) };
    if (holder !== undefined && !isAlive(holder, heartbeatOf(runDir))) {
      takeAway(path, holder);
      continue;
    }
    if (Date.now() >= deadline) throw busy(runDir, holder);
    await sleep(retryMs);
  }
}

/** The owner named in the lock; undefined without a lock. A lock that a crash left empty has a dead owner. */
export function lockHolder(runDir: string): Owner | undefined {
  try {
    const text = fs.readFileSync(join(runDir, lockName), 'utf8');
    return parseOwner(text);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

function parseOwner(text: string): Owner {
  try {
    return JSON.parse(text) as Owner;
  } catch {
    return { pid: 0, startTime: 'unknown', host: thisOwner().host };
  }
}

/** Renames the dead owner's lock away: of two processes that see it only one can. */
function takeAway(path: string, holder: Owner): void {
  const aside = `${path}.${process.pid}.dead`;
  try {
    fs.renameSync(path, aside);
  } catch {
    return;
  }
  const moved = parseOwner(fs.readFileSync(aside, 'utf8'));
  // Between reading and renaming another process may have taken over: give it its lock back.
  if (moved.pid !== holder.pid || moved.startTime !== holder.startTime) fs.linkSync(aside, path);
  remove(aside);
}

function release(path: string): void {
  try {
    if (isThisProcess(parseOwner(fs.readFileSync(path, 'utf8')))) remove(path);
  } catch {
    // Somebody removed the folder; there is nothing to release.
  }
}

const heartbeatOf = (runDir: string): string | null => readRecord(runDir)?.heartbeat ?? null;

function busy(runDir: string, holder: Owner | undefined): RcmBridgeError {
  const who = holder ? `process ${holder.pid} on ${holder.host}` : 'another process';
  return new RcmBridgeError('E_RUN_BUSY', `The run in ${runDir} is owned by ${who}, which is alive.`, {
    hint: 'Stop it with `rcm-bridge runs cancel`, or wait for its end.',
    details: { runDir, ...(holder ? { owner: { ...holder } } : {}) },
  });
}
