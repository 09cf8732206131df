/** events.ndjson and metrics.ndjson: written by the owner, followed by any process. */
import fs from 'node:fs';
import { join } from 'node:path';
import type { Draft, MetricEvent, RunEvent } from './events.ts';
import { journalledTypes } from './events.ts';
import { openAppender } from './files.ts';
import { numbersFromJson, parseLine, toJson } from './json.ts';

export const journalName = 'events.ndjson';
export const metricsName = 'metrics.ndjson';

/** The answer to a request of another process; stands in the journal, is no event for readers. */
export interface Answer {
  readonly type: 'answer';
  readonly re: string;
  readonly action: string;
  /** `accepted` comes within a second; `done` or `refused` when the work is over. */
  readonly status: 'accepted' | 'done' | 'refused';
  readonly value?: Readonly<Record<string, unknown>>;
  readonly error?: { readonly code: string; readonly message: string; readonly hint?: string };
}

/** Facts of an attempt for those who read the journal later. */
export interface AttemptStart {
  readonly type: 'attempt';
  readonly resumedFrom: string | null;
  readonly pid: number;
}

export type JournalEntry = Draft<Exclude<RunEvent, { type: 'progress' | 'metric' | 'gap' }>> | Answer | AttemptStart;

export interface Journal {
  /** Appends the entry; returns what was added to it. @throws E_DISK_FULL */
  write<Entry extends JournalEntry>(entry: Entry): Entry & { seq: number; attempt: number; time: number };
  metric(event: MetricEvent): void;
  close(): void;
}

/** Opens the journal of a run for its owner. `seq` goes on where an earlier attempt ended. */
export function openJournal(runDir: string, attempt: number): Journal {
  const path = join(runDir, journalName);
  let seq = lastSeq(path);
  const events = openAppender(path);
  const metrics = openAppender(join(runDir, metricsName));
  return {
    write: entry => {
      seq += 1;
      const written = { seq, attempt, time: Date.now() / 1000, ...entry };
      events.append(`${toJson({ schema: 1, ...written })}\n`);
      return written;
    },
    metric: ({ step, phase, time, values }) =>
      metrics.append(`${toJson({ schema: 1, attempt, step, phase, time, values })}\n`),
    close: () => {
      events.close();
      metrics.close();
    },
  };
}

function lastSeq(path: string): number {
  let last = 0;
  for (const line of readLines(path)) if (typeof line.seq === 'number') last = Math.max(last, line.seq);
  return last;
}

/** All whole lines of an ndjson file; a missing file has none, a line cut off by a crash is left out. */
export function readLines(path: string): readonly Readonly<Record<string, unknown>>[] {
  let text: string;
  try {
    text = fs.readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return parseLines(text);
}

function parseLines(text: string): readonly Readonly<Record<string, unknown>>[] {
  return text
    .split('\n')
    .map(parseLine)
    .filter(line => line !== undefined);
}

/** The journal's events for readers, without answers. */
export function readEvents(runDir: string): readonly RunEvent[] {
  return readLines(join(runDir, journalName)).filter(isEventLine);
}

/** Narrows a journal line to an event for readers. */
export const isEventLine = (line: Readonly<Record<string, unknown>>): line is RunEvent & Record<string, unknown> =>
  typeof line.type === 'string' && journalledTypes.has(line.type);

/** A line of metrics.ndjson as the event it was; undefined for anything else. */
export function metricFromLine(line: Readonly<Record<string, unknown>>): MetricEvent | undefined {
  const { step, attempt, phase, time, values } = line;
  if (typeof step !== 'number' || typeof attempt !== 'number') return undefined;
  return { type: 'metric', attempt, step, phase: String(phase), time: Number(time), values: numbersFromJson(values) };
}

export function readMetrics(runDir: string): readonly MetricEvent[] {
  return readLines(join(runDir, metricsName)).flatMap(line => metricFromLine(line) ?? []);
}

/** Follows a growing ndjson file: every call returns the whole lines that came since the last one. */
export function createTail(path: string, fromEnd = false): () => readonly Readonly<Record<string, unknown>>[] {
  let offset = fromEnd ? sizeOf(path) : 0;
  let rest = Buffer.alloc(0);
  return () => {
    const size = sizeOf(path);
    if (size <= offset) return [];
    const descriptor = fs.openSync(path, 'r');
    try {
      const chunk = Buffer.alloc(size - offset);
      offset += fs.readSync(descriptor, chunk, 0, chunk.length, offset);
      rest = Buffer.concat([rest, chunk]);
    } finally {
      fs.closeSync(descriptor);
    }
    const end = rest.lastIndexOf(0x0a) + 1;
    const text = rest.subarray(0, end).toString('utf8');
    rest = Buffer.from(rest.subarray(end));
    return parseLines(text);
  };
}

function sizeOf(path: string): number {
  return fs.statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}
