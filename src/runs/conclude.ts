/** The end of a run: from what happened to what is written down and returned. */
import type { AbortedError, RcmBridgeError } from '../errors/index.ts';
import type { EventBody } from '../protocol/messages.ts';
import { findCheckpoint } from './checkpoints.ts';
import type { Draft, EndEvent } from './events.ts';
import type { RunResult } from './handle.ts';
import type { EndState, RunRecord } from './record.ts';
import { newestCheckpoint, resultFrom, runFailed, scorecardFor } from './result.ts';
import { asError, errorRecord } from './run-errors.ts';
import type { RunStateKeeper } from './run-state.ts';

/** How a run ended, before it is written down. */
export interface Outcome {
  readonly state: EndState;
  readonly error?: RcmBridgeError;
  /** What the sidecar said; absent when it could say nothing any more. */
  readonly body?: EventBody<'end'>;
}

export interface Conclusion {
  readonly event: Draft<EndEvent>;
  readonly error?: RcmBridgeError;
}

export type Settled = { readonly value: RunResult } | { readonly error: RcmBridgeError };

const stoppedExitCode = 7;
const gateExitCode = 6;

/** Turns the outcome into the last event. A run has succeeded only when its report stands, too. */
export async function conclude(
  runDir: string,
  state: RunStateKeeper,
  startedMs: number,
  outcome: Outcome,
): Promise<Conclusion> {
  let reached = outcome;
  let exitCode: number = outcome.state === 'stopped' ? stoppedExitCode : (outcome.error?.exitCode ?? 1);
  if (outcome.body) state.progress(progressOf(outcome.body));
  if (outcome.state === 'succeeded') {
    try {
      exitCode = await completeSuccess(runDir, state);
    } catch (error) {
      reached = { ...outcome, state: 'failed', error: asError(error) };
      exitCode = asError(error).exitCode;
    }
  }
  const { step, studentUpdates, criticUpdates } = state.record.progress;
  const event: Draft<EndEvent> = {
    type: 'end',
    state: reached.state,
    step,
    studentUpdates,
    criticUpdates,
    exitCode,
    checkpoint: outcome.body?.checkpoint ?? newestCheckpoint(runDir),
    exports: outcome.body?.exports ?? [],
    wallSeconds: (Date.now() - startedMs) / 1000,
    ...(reached.error ? { error: errorRecord(reached.error) } : {}),
  };
  return { event, ...(reached.error ? { error: reached.error } : {}) };
}

const progressOf = ({ step, studentUpdates, criticUpdates }: EventBody<'end'>) => ({
  step,
  studentUpdates,
  criticUpdates,
});

/** Judges the gates and writes the report; the exit code. A smoke run reads its checkpoint back instead of judging. */
async function completeSuccess(runDir: string, state: RunStateKeeper): Promise<number> {
  const { record } = state;
  if (record.smoke) await findCheckpoint(runDir);
  const exitCode = scorecardFor(runDir, record)?.met === false ? gateExitCode : 0;
  const { writeReport } = await import('../report/html.ts');
  await writeReport([runDir], state.ended({ state: 'succeeded', exitCode }));
  return exitCode;
}

/** What `result()` gives: the error of a failed run, that of its AbortSignal, or the result. */
export function settle(
  runDir: string,
  record: RunRecord,
  { event, error }: Conclusion,
  aborted: AbortedError | undefined,
): Settled {
  if (event.state === 'failed') return { error: runFailed(record, runDir, event.error, error) };
  if (aborted) return { error: aborted };
  return { value: resultFrom(runDir, record, { ...event, attempt: record.attempt, time: Date.now() / 1000 }) };
}
