/** What a reader of a run sees. `time` is in seconds since 1970, as in metrics.ndjson. */
import type { Evaluation } from '../evaluation/evaluation.ts';
import type { EndState, RunErrorRecord, RunState } from './record.ts';

export type Activity = 'idle' | 'loading' | 'compiling' | 'training' | 'sampling' | 'evaluating' | 'checkpointing';

interface Common {
  /** Place in events.ndjson; absent for events that are not journalled (progress, metric, gap). */
  readonly seq?: number;
  readonly attempt: number;
  readonly time: number;
}

export interface StateEvent extends Common {
  readonly type: 'state';
  readonly state: RunState;
  readonly step: number;
}

/** How far the run is. Only the newest matters: older ones may be left out. */
export interface ProgressEvent extends Common {
  readonly type: 'progress';
  readonly activity: Activity;
  readonly step: number;
  readonly steps: number;
  /** The network being updated: `student` or `critic` (pretraining: `teacher`); null before the first step. */
  readonly phase: string | null;
  readonly studentUpdates: number;
  readonly criticUpdates: number;
  readonly samplesPerSecond: number | null;
  readonly etaSeconds: number | null;
  /** Newest losses and other scalars, by metric name. */
  readonly values: Readonly<Record<string, number>>;
}

/** Scalars of one step; never left out. Values may be NaN or infinite. */
export interface MetricEvent extends Common {
  readonly type: 'metric';
  readonly step: number;
  readonly phase: string;
  readonly values: Readonly<Record<string, number>>;
}

export interface CheckpointEvent extends Common {
  readonly type: 'checkpoint';
  readonly step: number;
  /** Relative to the run directory, as all paths of events are. */
  readonly path: string;
  readonly bytes: number;
  readonly seconds: number;
  readonly reason: string;
}

/** A grid of images, written as PNG with a JSON file beside it. */
export interface SampleEvent extends Common {
  readonly type: 'sample';
  readonly step: number;
  readonly kind: 'preview' | 'evaluation' | 'request';
  readonly title: string;
  readonly rows: readonly string[];
  readonly columns: readonly string[];
  readonly path: string;
}

export interface EvaluationEvent extends Common {
  readonly type: 'evaluation';
  readonly step: number;
  readonly path: string;
  readonly evaluation: Evaluation;
}

export interface AlarmEvent extends Common {
  readonly type: 'alarm';
  readonly code: string;
  readonly message: string;
  readonly step: number;
  readonly details: Readonly<Record<string, unknown>>;
}

export interface LogEvent extends Common {
  readonly type: 'log';
  readonly level: string;
  readonly message: string;
  readonly fields: Readonly<Record<string, unknown>>;
}

/** This reader was too slow and lost so many events; the files of the run have them all. */
export interface GapEvent extends Common {
  readonly type: 'gap';
  readonly lost: number;
}

/** The last event of a run; iteration ends after it. */
export interface EndEvent extends Common {
  readonly type: 'end';
  readonly state: EndState;
  readonly step: number;
  readonly studentUpdates: number;
  readonly criticUpdates: number;
  readonly exitCode: number;
  /** Newest checkpoint, relative to the run directory. */
  readonly checkpoint: string | null;
  readonly exports: readonly { readonly layout: string; readonly path: string }[];
  readonly wallSeconds: number;
  readonly error?: RunErrorRecord;
}

export type RunEvent =
  | StateEvent
  | ProgressEvent
  | MetricEvent
  | CheckpointEvent
  | SampleEvent
  | EvaluationEvent
  | AlarmEvent
  | LogEvent
  | GapEvent
  | EndEvent;

export type RunEventType = RunEvent['type'];
export type RunEventOf<Type extends RunEventType> = Extract<RunEvent, { type: Type }>;

/** Types whose lines in events.ndjson are events for readers; the journal also holds answers to requests. */
export const journalledTypes: ReadonlySet<string> = new Set<RunEventType>([
  'state',
  'checkpoint',
  'sample',
  'evaluation',
  'alarm',
  'log',
  'end',
]);

/** An event without what the journal adds. */
export type Draft<Event> = Event extends RunEvent ? Omit<Event, 'seq' | 'attempt' | 'time'> : never;
