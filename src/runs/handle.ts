/** A run as users of the package hold it, whether this process owns it or another one does. */
import type { Scorecard } from '../evaluation/scorecard.ts';
import type { EventsOptions } from './event-stream.ts';
import type { RunEvent, RunEventOf, RunEventType } from './events.ts';
import type { EndState, RunRecord, RunState } from './record.ts';

/** What a run that succeeded or stopped leaves. Paths are absolute. */
export interface RunResult {
  readonly runId: string;
  readonly runDir: string;
  readonly state: Exclude<EndState, 'failed'>;
  readonly step: number;
  /** Folder of the newest checkpoint. */
  readonly checkpoint: string | null;
  readonly exports: readonly { readonly layout: string; readonly path: string }[];
  /** The last evaluation against the gates; null before the first. */
  readonly scorecard: Scorecard | null;
  /** report/index.html, when it has been written. */
  readonly report: string | null;
  /** Of the last attempt. */
  readonly wallSeconds: number;
  /** 0, 6 when a gate is not met, 7 when the run was stopped. */
  readonly exitCode: number;
}

export interface CancelOptions {
  /** Write a checkpoint first. Default: `checkpoints.onStop` of the config. */
  readonly checkpoint?: boolean;
  /** The sidecar is killed when it has not stopped by then. Default 30 s. */
  readonly deadlineMs?: number;
}

export interface SampleRequest {
  /** Sampler steps. Default 4. */
  readonly steps?: number;
  /** Default 10. */
  readonly num?: number;
  /** Default 0. */
  readonly seed?: number;
  /** Class; null: the classes take turns. */
  readonly label?: number | null;
}

/** What `rcm-bridge runs show` shows. */
export interface RunDescription {
  readonly run: RunRecord;
  readonly dir: string;
  /** Absolute, oldest first. */
  readonly checkpoints: readonly string[];
  readonly scorecard: Scorecard | null;
  readonly report: string | null;
}

/**
 * A run. Not a promise: `await run.result()`. Leaving a loop over its events stops nothing, and nobody has to read them.
 */
export interface RunHandle extends AsyncIterable<RunEvent> {
  readonly id: string;
  readonly dir: string;
  readonly state: RunState;
  /** True when `resume` found the run complete, so that nothing was started. */
  readonly wasComplete: boolean;
  /** Number of this machine in a run on several; 0, which leads, on one. */
  readonly node: number;
  /** All events of this attempt, ending with `end`. */
  [Symbol.asyncIterator](): AsyncIterator<RunEvent>;
  /** A further reader. `gap` events say how many were lost when it was too slow. */
  events<Type extends RunEventType>(
    options?: EventsOptions<Type>,
  ): AsyncIterableIterator<RunEventOf<Type | 'gap' | 'end'>>;
  /**
   * The end of the run. @throws RunFailedError when it failed, AbortedError (E_ABORTED) when its AbortSignal stopped it
   */
  result(): Promise<RunResult>;
  /** Stops the run; resolves with the state it ended in. A run that is over stays as it is. */
  cancel(options?: CancelOptions): Promise<{ readonly state: EndState }>;
  /** Resolves when the run stands still after its current step. @throws E_RUN_ENDED */
  pause(): Promise<void>;
  /** @throws E_RUN_ENDED */
  continue(): Promise<void>;
  /** Writes a checkpoint at the next step; its absolute path. @throws E_RUN_ENDED */
  checkpoint(): Promise<{ readonly step: number; readonly path: string }>;
  /** Draws samples with the student as it is; a `sample` event tells where they are. @throws E_RUN_ENDED */
  sample(request?: SampleRequest): Promise<void>;
  describe(): Promise<RunDescription>;
}
