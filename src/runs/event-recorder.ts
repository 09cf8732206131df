/** Puts what the sidecar sends where it belongs: journal, metrics, samples, evaluations, run.json, readers. */
import { join } from 'node:path';
import type { SidecarBlob } from '../bridge/event-stream.ts';
import { RcmBridgeError } from '../errors/index.ts';
import { evaluationFromBody } from '../evaluation/evaluation.ts';
import { evaluationFolder } from '../evaluation/scorecard.ts';
import type { MetricSink } from '../logging/csv-sink.ts';
import { type Logger, type LogLevel, logLevels } from '../logging/logger.ts';
import type { EventBody, SidecarEvent } from '../protocol/messages.ts';
import { deferred } from './deferred.ts';
import type { EventStream } from './event-stream.ts';
import type { Activity, Draft, ProgressEvent, RunEvent } from './events.ts';
import { makeDirectory, writeJsonAtomic } from './files.ts';
import type { Journal, JournalEntry } from './journal.ts';
import { stepName } from './run-id.ts';
import type { RunStateKeeper } from './run-state.ts';
import { sampleFolder, writeSampleGrid } from './sample-files.ts';

export interface EventRecorderParts {
  readonly runDir: string;
  readonly state: RunStateKeeper;
  readonly journal: Journal;
  readonly stream: EventStream;
  readonly sinks: readonly MetricSink[];
  readonly logger: Logger;
  readonly level: LogLevel;
}

export interface EventRecorder {
  /** Journals an event of the owner's own and hands it to readers. @throws E_DISK_FULL */
  record<Event extends Draft<Exclude<RunEvent, { type: 'progress' | 'metric' | 'gap' }>>>(event: Event): void;
  onEvent(event: SidecarEvent): Promise<void>;
  onBlob(blob: SidecarBlob): Promise<void>;
  /** Resolves with the sidecar's `end` when all its blobs have been written. */
  readonly ended: Promise<EventBody<'end'>>;
  /** Resolves when training, or what follows it, has begun: nothing is refused any more. */
  readonly begun: Promise<void>;
}

/** How long blobs may come after the `end` that counts them. */
const blobPatienceMs = 30_000;

export function createEventRecorder(parts: EventRecorderParts): EventRecorder {
  const { runDir, state, journal, stream, sinks, logger } = parts;
  const { attempt } = state.record;
  const ended = deferred<EventBody<'end'>>();
  const begun = deferred<void>();
  let blobsWritten = 0;
  let wakeBlobs: (() => void) | undefined;
  let activity: Activity = 'loading';
  let latest: Omit<ProgressEvent, 'attempt' | 'time' | 'activity'> = firstProgress(state);

  const record = (entry: JournalEntry): void => stream.publish(journal.write(entry) as RunEvent);
  const showProgress = (time: number): void => stream.publish({ ...latest, attempt, time, activity });

  const allBlobs = async (expected: number): Promise<void> => {
    const deadline = Date.now() + blobPatienceMs;
    while (blobsWritten < expected && Date.now() < deadline) {
      await new Promise<void>(resolve => {
        wakeBlobs = resolve;
        setTimeout(resolve, 1_000);
      });
    }
    if (blobsWritten < expected) logger.warn({ expected, blobsWritten }, 'sample grids are missing');
  };

  const onActivity = (body: EventBody<'activity'>, time: number): void => {
    activity = body.activity;
    if (activity !== 'loading' && activity !== 'idle') begun.resolve(undefined);
    latest = { ...latest, step: Math.max(latest.step, body.step) };
    showProgress(time);
  };
  const onProgress = (body: EventBody<'progress'>, time: number): void => {
    const { samplesPerSecond, etaSeconds, ...rest } = body;
    latest = { type: 'progress', ...rest, samplesPerSecond: finite(samplesPerSecond), etaSeconds: finite(etaSeconds) };
    const { step, steps, studentUpdates, criticUpdates } = body;
    state.progress({ step, steps, studentUpdates, criticUpdates });
    showProgress(time);
  };
  const onMetric = (body: EventBody<'metric'>): void => {
    for (const item of body.items) {
      const event = { type: 'metric', attempt, ...item } as const;
      journal.metric(event);
      for (const sink of sinks) sink.write(event);
      stream.publish(event);
    }
  };
  const onEvaluation = (body: EventBody<'evaluation'>): void => {
    const evaluation = evaluationFromBody(body);
    const path = join(evaluationFolder, `${stepName(body.step)}-${body.network}.json`);
    makeDirectory(join(runDir, evaluationFolder));
    writeJsonAtomic(join(runDir, path), { ...evaluation });
    record({ type: 'evaluation', step: body.step, path, evaluation });
  };
  const onLog = (body: EventBody<'log'>): void => {
    logger[body.level](body.fields, body.message);
    if (isLogged(body.level, parts.level)) record({ type: 'log', ...body });
  };
  const onPaused = (body: EventBody<'paused'>, paused: boolean): void => {
    state.progress({ step: body.step });
    const next = paused ? 'paused' : 'running';
    if (state.move(next)) record({ type: 'state', state: next, step: body.step });
  };

  return {
    record,
    ended: ended.promise,
    begun: begun.promise,
    onEvent: async event => {
      if (isWork(event)) begun.resolve(undefined);
      switch (event.type) {
        case 'activity':
          return onActivity(event.body, event.time);
        case 'progress':
          return onProgress(event.body, event.time);
        case 'metric':
          return onMetric(event.body);
        case 'checkpoint':
          return record({ type: 'checkpoint', ...event.body });
        case 'evaluation':
          return onEvaluation(event.body);
        case 'alarm':
          logger.warn({ ...event.body }, 'alarm');
          return record({ type: 'alarm', ...event.body });
        case 'log':
          return onLog(event.body);
        case 'paused':
          return onPaused(event.body, true);
        case 'continued':
          return onPaused(event.body, false);
        case 'end':
          // Not awaited: blobs arrive on another socket while this handler would hold up nothing but itself.
          allBlobs(event.body.blobs).then(() => ended.resolve(event.body));
          return;
      }
    },
    onBlob: async ({ body, tensors }) => {
      const pixels = tensors.pixels;
      if (!pixels) throw new RcmBridgeError('E_PROTOCOL', 'A sample came without its pixels.');
      const folder = sampleFolder(body.step);
      const name = await writeSampleGrid(join(runDir, folder), body, { shape: pixels.shape, data: pixels.bytes });
      const path = join(folder, name);
      record({ type: 'sample', ...body, path });
      blobsWritten += 1;
      wakeBlobs?.();
    },
  };
}

function firstProgress(state: RunStateKeeper): Omit<ProgressEvent, 'attempt' | 'time' | 'activity'> {
  return {
    type: 'progress',
    ...state.record.progress,
    phase: null,
    samplesPerSecond: null,
    etaSeconds: null,
    values: {},
  };
}

/** Events that only a job past its checks sends. */
function isWork(event: SidecarEvent): boolean {
  if (event.type === 'progress') return event.body.step > 0;
  return event.type === 'metric' || event.type === 'checkpoint' || event.type === 'evaluation';
}

const finite = (value: number): number | null => (Number.isFinite(value) ? value : null);

const isLogged = (level: LogLevel, least: LogLevel): boolean => logLevels.indexOf(level) >= logLevels.indexOf(least);
