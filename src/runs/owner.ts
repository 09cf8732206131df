/** Who owns a run, and whether that process still lives. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { hostname } from 'node:os';

export interface Owner {
  readonly pid: number;
  /** When the process started, as the system tells it: a pid alone may belong to another process by now. */
  readonly startTime: string;
  readonly host: string;
}

/** Owners on another host count as gone after this silence; they write the heartbeat every `heartbeatIntervalMs`. */
export const heartbeatLimitMs = 60_000;
export const heartbeatIntervalMs = 2_000;

let self: Owner | undefined;

/** This process as an owner. */
export function thisOwner(): Owner {
  self ??= { pid: process.pid, startTime: processStartTime(process.pid) ?? 'unknown', host: hostname() };
  return self;
}

/** True while the owner runs: same host: pid and start time; another host: a heartbeat that is not too old. */
export function isAlive(owner: Owner, heartbeat: string | null, now: number = Date.now()): boolean {
  if (owner.host !== hostname()) return heartbeat !== null && now - Date.parse(heartbeat) < heartbeatLimitMs;
  return processStartTime(owner.pid) === owner.startTime;
}

export const isThisProcess = (owner: Owner): boolean => {
  const own = thisOwner();
  return owner.pid === own.pid && owner.startTime === own.startTime && owner.host === own.host;
};

/** A text that is the same as long as the pid belongs to the same process; undefined when there is no such process. */
export function processStartTime(pid: number): string | undefined {
  return process.platform === 'linux' ? linuxStartTime(pid) : posixStartTime(pid);
}

/** Linux: the boot's id and field 22 of /proc/PID/stat (clock ticks since boot). A zombie has ended. */
function linuxStartTime(pid: number): string | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command may hold blanks and brackets: fields count from the last bracket.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
    return `${bootId()}/${fields[19]}`;
  } catch {
    return undefined;
  }
}

function bootId(): string {
  return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim().slice(0, 8);
}

function posixStartTime(pid: number): string | undefined {
  try {
    const text = execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8', stdio: 'pipe' }).trim();
    return text === '' ? undefined : text;
  } catch {
    return undefined;
  }
}
