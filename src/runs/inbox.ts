/** Requests of other processes to a run's owner: files renamed into inbox/, answered in events.ndjson. */

import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { makeDirectory, remove, writeJsonAtomic } from './files.ts';
import { parseLine } from './json.ts';

export const inboxName = 'inbox';
/** Answers have to come within a second. */
const pollIntervalMs = 200;

export const requestActions = ['cancel', 'pause', 'continue', 'checkpoint', 'sample'] as const;
export type RequestAction = (typeof requestActions)[number];

export interface InboxRequest {
  readonly id: string;
  readonly action: string;
  readonly args: Readonly<Record<string, unknown>>;
  /** Who asks, for people: pid and host. */
  readonly by: string;
}

/** Puts a request into the inbox; returns its id. @throws E_DISK_FULL */
export function sendRequest(runDir: string, action: RequestAction, args: Readonly<Record<string, unknown>>): string {
  const id = randomUUID();
  const folder = join(runDir, inboxName);
  makeDirectory(folder);
  writeJsonAtomic(join(folder, `${id}.json`), { id, action, args, by: `${process.pid}@${hostname()}` });
  return id;
}

/**
 * Calls `handle` for every request, oldest first, and removes it. Looks every 200 ms: unlike change events of the
 * file system that also works for requests from other hosts. Returns a function that ends it.
 */
export function watchInbox(
  runDir: string,
  handle: (request: InboxRequest) => void,
  refuse: (fileName: string) => void,
): () => void {
  const folder = join(runDir, inboxName);
  const timer = setInterval(() => {
    for (const fileName of waiting(folder)) {
      const request = takeRequest(join(folder, fileName));
      if (request) handle(request);
      else refuse(fileName);
    }
  }, pollIntervalMs);
  return () => clearInterval(timer);
}

/** Requests that nobody answered, e.g. of an owner that died, are not for the next attempt. */
export function clearInbox(runDir: string): void {
  for (const fileName of waiting(join(runDir, inboxName))) remove(join(runDir, inboxName, fileName));
}

function waiting(folder: string): readonly string[] {
  let names: string[];
  try {
    names = fs.readdirSync(folder).filter(name => name.endsWith('.json') && !name.startsWith('.'));
  } catch {
    return [];
  }
  if (names.length < 2) return names;
  const ageOf = (name: string): number => fs.statSync(join(folder, name), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  return names
    .map(name => ({ name, age: ageOf(name) }))
    .sort((a, b) => a.age - b.age)
    .map(entry => entry.name);
}

function takeRequest(path: string): InboxRequest | undefined {
  const text = readQuietly(path);
  remove(path);
  const value = text === undefined ? undefined : parseLine(text.replace(/\s*\n\s*/g, ' '));
  if (typeof value?.id !== 'string' || typeof value.action !== 'string') return undefined;
  const args = typeof value.args === 'object' && value.args !== null ? (value.args as Record<string, unknown>) : {};
  return { id: value.id, action: value.action, args, by: String(value.by ?? 'unknown') };
}

function readQuietly(path: string): string | undefined {
  try {
    return fs.readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
