/** A run that another process owns, or that is over: followed through its files, asked through its inbox. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrorCode, RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import type { EventsOptions } from './event-stream.ts';
import type { EndEvent, RunEvent } from './events.ts';
import type { RunHandle } from './handle.ts';
import { type RequestAction, sendRequest } from './inbox.ts';
import { createTail, isEventLine, journalName, metricFromLine, metricsName } from './journal.ts';
import { isEndState, type RunRecord, readSettledRecord } from './record.ts';
import { describeRun, endedError, endOfLostRun, findEnd, resultFrom, runFailed } from './result.ts';

const pollIntervalMs = 100;
/** The owner answers within a second; one that is busy starting up gets more. */
const acceptPatienceMs = 10_000;

export interface RemoteRunOptions {
  readonly signal?: AbortSignal | undefined;
  readonly wasComplete?: boolean;
}

/** @throws E_RUN_NOT_FOUND */
export function openRemoteRun(runDir: string, options: RemoteRunOptions = {}): RunHandle {
  const { signal } = options;
  const first = recordOf(runDir);
  const now = (): RunRecord => recordOf(runDir);

  const ended = async (): Promise<EndEvent> => {
    for (;;) {
      const end = endNow(runDir, first.attempt);
      if (end) return end;
      throwIfAborted(signal);
      await sleep(pollIntervalMs);
    }
  };

  const ask = async (
    action: RequestAction,
    args: Readonly<Record<string, unknown>>,
  ): Promise<Readonly<Record<string, unknown>>> => {
    const record = now();
    if (isEndState(record.state)) throw endedError(record);
    const answers = createTail(join(runDir, journalName), true);
    const id = sendRequest(runDir, action, args);
    const deadline = Date.now() + acceptPatienceMs;
    let accepted = false;
    for (;;) {
      const heard = readAnswer(answers(), id);
      if (heard?.done) return heard.done;
      accepted ||= heard !== undefined;
      throwIfAborted(signal);
      const state = now();
      if (isEndState(state.state)) throw endedError(state);
      if (!accepted && Date.now() > deadline) throw silentOwner(state);
      await sleep(pollIntervalMs);
    }
  };

  return {
    id: first.id,
    dir: runDir,
    wasComplete: options.wasComplete ?? false,
    node: 0,
    get state() {
      return now().state;
    },
    [Symbol.asyncIterator]: () => follow(runDir, first.attempt, undefined, signal),
    events: ({ types }: EventsOptions = {}) =>
      follow(runDir, first.attempt, types && new Set<string>([...types, 'end']), signal) as AsyncGenerator<never>,
    result: async () => {
      const end = await ended();
      if (end.state === 'failed') throw runFailed(first, runDir, end.error);
      return resultFrom(runDir, now(), end);
    },
    cancel: async (cancelOptions = {}) => {
      if (!isEndState(now().state)) {
        // The run may end by itself while the request is on its way; its end is the answer either way.
        await ask('cancel', { ...cancelOptions }).catch(error => {
          if ((error as RcmBridgeError).code !== 'E_RUN_ENDED') throw error;
        });
      }
      return { state: (await ended()).state };
    },
    pause: async () => void (await ask('pause', {})),
    continue: async () => void (await ask('continue', {})),
    checkpoint: async () => {
      const { step, path } = await ask('checkpoint', {});
      return { step: Number(step), path: String(path) };
    },
    sample: async (request = {}) => void (await ask('sample', { ...request })),
    describe: async () => describeRun(runDir, now()),
  };
}

/** What the journal says to a request: nothing, that it is accepted, or its value. @throws when it was refused */
function readAnswer(lines: Lines, id: string): { readonly done?: Readonly<Record<string, unknown>> } | undefined {
  const mine = lines.filter(line => line.type === 'answer' && line.re === id);
  const refused = mine.find(line => line.status === 'refused');
  if (refused) throw refusal(refused.error);
  const done = mine.find(line => line.status === 'done');
  if (done) return { done: (done.value ?? {}) as Record<string, unknown> };
  return mine.length > 0 ? {} : undefined;
}

/**
 * The events of one attempt from its start. The files hold what a slow reader has not read yet, so there are no gaps;
 * `progress` comes from run.json.
 */
async function* follow(
  runDir: string,
  attempt: number,
  wanted: ReadonlySet<string> | undefined,
  signal: AbortSignal | undefined,
): AsyncGenerator<RunEvent, undefined> {
  const journal = createTail(join(runDir, journalName));
  const metrics = createTail(join(runDir, metricsName));
  const shown = createProgressWatch(attempt);
  for (;;) {
    // The order matters: what stands in run.json has been journalled before.
    const record = recordOf(runDir);
    const events = newEvents(journal(), metrics(), attempt);
    const progress = shown(record);
    for (const event of progress ? [...events, progress] : events) {
      if (event.type === 'end') {
        yield event;
        return;
      }
      if (!wanted || wanted.has(event.type)) yield event;
    }
    if (isEndState(record.state) || record.attempt > attempt) {
      yield endNow(runDir, attempt) ?? endOfLostRun(runDir, { ...record, attempt, state: 'failed' });
      return;
    }
    throwIfAborted(signal);
    await sleep(pollIntervalMs);
  }
}

type Lines = readonly Readonly<Record<string, unknown>>[];

/** Journal and metrics in the order of time, an end after the metrics that came with it. */
function newEvents(journal: Lines, metrics: Lines, attempt: number): readonly RunEvent[] {
  const events: RunEvent[] = journal.filter(isEventLine);
  for (const line of metrics) {
    const metric = metricFromLine(line);
    if (metric) events.push(metric);
  }
  const rank = (event: RunEvent): number => (event.type === 'end' ? Number.POSITIVE_INFINITY : event.time);
  return events
    .filter(event => event.attempt === attempt)
    .sort((a, b) => (rank(a) === rank(b) ? 0 : rank(a) - rank(b)));
}

/** A progress event whenever run.json shows a new step. */
function createProgressWatch(attempt: number): (record: RunRecord) => RunEvent | undefined {
  let lastStep: number | undefined;
  return record => {
    if (record.attempt !== attempt || record.progress.step === lastStep) return undefined;
    lastStep = record.progress.step;
    return {
      type: 'progress',
      attempt,
      time: Date.parse(record.heartbeat) / 1000,
      activity: 'training',
      phase: null,
      ...record.progress,
      samplesPerSecond: null,
      etaSeconds: null,
      values: {},
    };
  };
}

/** The end of an attempt, once it has one. */
function endNow(runDir: string, attempt: number): EndEvent | undefined {
  const record = recordOf(runDir);
  if (record.attempt === attempt && !isEndState(record.state)) return undefined;
  return findEnd(runDir, attempt) ?? endOfLostRun(runDir, { ...record, attempt });
}

function recordOf(runDir: string): RunRecord {
  const record = readSettledRecord(runDir);
  if (record) return record;
  throw new RcmBridgeError('E_RUN_NOT_FOUND', `There is no run in ${runDir} any more.`, {
    hint: 'See `rcm-bridge runs list`.',
  });
}

function refusal(error: unknown): RcmBridgeError {
  const { code = 'E_INTERNAL', message = 'The owner refused.', hint } = (error ?? {}) as Record<string, string>;
  return new RcmBridgeError(isErrorCode(code) ? code : 'E_INTERNAL', message, { hint });
}

const silentOwner = (record: RunRecord): RcmBridgeError =>
  new RcmBridgeError(
    'E_RUN_BUSY',
    `Process ${record.owner.pid} on ${record.owner.host}, which owns ${record.id}, does not answer.`,
    {
      hint: 'It may be stopped or overloaded; try again, or end that process.',
    },
  );
