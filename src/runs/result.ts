/** What is left of a run that is over, read from its directory. */
import fs from 'node:fs';
import { join } from 'node:path';
import { type ErrorCode, isErrorCode, RcmBridgeError, RunFailedError } from '../errors/index.ts';
import { readScorecard } from '../evaluation/scorecard.ts';
import { reportPath } from '../report/report-path.ts';
import { checkpointsName, listCheckpoints } from './checkpoints.ts';
import { readStoredConfig } from './config-file.ts';
import type { EndEvent } from './events.ts';
import type { RunDescription, RunResult } from './handle.ts';
import { readEvents } from './journal.ts';
import { type EndState, hasGates, isEndState, type RunErrorRecord, type RunRecord } from './record.ts';

/** The result of a run that ended with `end`; not for failed runs. */
export function resultFrom(runDir: string, record: RunRecord, end: EndEvent): RunResult {
  return {
    runId: record.id,
    runDir,
    state: end.state as Exclude<EndState, 'failed'>,
    step: end.step,
    checkpoint: end.checkpoint === null ? null : join(runDir, end.checkpoint),
    exports: end.exports.map(({ layout, path }) => ({ layout, path: join(runDir, path) })),
    scorecard: scorecardFor(runDir, record) ?? null,
    report: existingReport(runDir),
    wallSeconds: end.wallSeconds,
    exitCode: end.exitCode,
  };
}

/** The `end` of an attempt as the journal holds it; undefined when the owner died before it could write one. */
export function findEnd(runDir: string, attempt: number): EndEvent | undefined {
  return readEvents(runDir).findLast((event): event is EndEvent => event.type === 'end' && event.attempt === attempt);
}

/** The `end` that an owner did not write because it died or the disk was full. */
export function endOfLostRun(runDir: string, record: RunRecord): EndEvent {
  const newest = listCheckpoints(runDir).at(-1);
  const { step, studentUpdates, criticUpdates } = record.progress;
  const started = Date.parse(record.times.started ?? record.times.created);
  return {
    type: 'end',
    attempt: record.attempt,
    time: Date.parse(record.heartbeat) / 1000,
    state: isEndState(record.state) ? record.state : 'failed',
    step,
    studentUpdates,
    criticUpdates,
    exitCode: record.exitCode ?? 4,
    checkpoint: newest ? newest.path.slice(runDir.length + 1) : null,
    exports: [],
    wallSeconds: Math.max(0, (Date.parse(record.heartbeat) - started) / 1000),
    ...(record.error ? { error: record.error } : {}),
  };
}

/** The error of a failed run, for `result()`. */
export function runFailed(
  record: Pick<RunRecord, 'id'>,
  runDir: string,
  error: RunErrorRecord | undefined,
  cause?: unknown,
): RunFailedError {
  const code: ErrorCode = error && isErrorCode(error.code) ? error.code : 'E_TRAINING';
  return new RunFailedError(code, error?.message ?? 'The run failed.', {
    runId: record.id,
    runDir,
    hint: error?.hint ?? `See the logs in ${join(runDir, 'logs')}, then go on with: rcm-bridge resume ${record.id}`,
    ...(cause === undefined ? {} : { cause }),
  });
}

/** What a run that is over, or about to be, answers to requests. */
export const endedError = (record: Pick<RunRecord, 'id' | 'state'>): RcmBridgeError =>
  new RcmBridgeError(
    'E_RUN_ENDED',
    `The run ${record.id} is ${record.state === 'stopping' ? 'stopping' : 'over'} (${record.state}).`,
    {
      hint: `Go on with it: rcm-bridge resume ${record.id}`,
    },
  );

export function scorecardFor(runDir: string, record: Pick<RunRecord, 'job' | 'smoke'>) {
  return readScorecard(runDir, hasGates(record) ? readStoredConfig(runDir).evaluation.gates : []);
}

export function describeRun(runDir: string, record: RunRecord): RunDescription {
  return {
    run: record,
    dir: runDir,
    checkpoints: listCheckpoints(runDir).map(({ path }) => path),
    scorecard: scorecardFor(runDir, record) ?? null,
    report: existingReport(runDir),
  };
}

function existingReport(runDir: string): string | null {
  const path = join(runDir, reportPath);
  return fs.existsSync(path) ? path : null;
}

export const newestCheckpoint = (runDir: string): string | null => {
  const newest = listCheckpoints(runDir).at(-1);
  return newest ? join(checkpointsName, newest.path.split('/').at(-1) ?? '') : null;
};
