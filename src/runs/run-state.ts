/** The state of a run in its owner: allowed transitions, run.json and the heartbeat. */
import type { EndEvent } from './events.ts';
import { heartbeatIntervalMs } from './owner.ts';
import {
  type EndState,
  isEndState,
  type RunErrorRecord,
  type RunProgress,
  type RunRecord,
  type RunState,
  transitions,
  writeRecord,
} from './record.ts';

export interface RunStateKeeper {
  readonly record: RunRecord;
  /** Moves to a state and writes run.json; false, and nothing happens, where the transition is not allowed. */
  move(state: Exclude<RunState, EndState>): boolean;
  /** Remembered; run.json gets it with the next heartbeat. */
  progress(progress: Partial<RunProgress>): void;
  /** The record that `end` would write, e.g. for the report. */
  ended(end: Pick<EndEvent, 'state' | 'exitCode' | 'error'>): RunRecord;
  /** Writes the end into run.json. An end is reached once. */
  end(end: Pick<EndEvent, 'state' | 'exitCode' | 'error'>): void;
  /** Resolves when `test` holds or the run is over. */
  until(test: (state: RunState) => boolean): Promise<RunState>;
}

/** Starts the heartbeat; `onWriteError` hears of a run.json that could not be written. */
export function keepState(runDir: string, first: RunRecord, onWriteError: (error: unknown) => void): RunStateKeeper {
  let record = first;
  const waiting = new Set<() => void>();
  const write = (changes: Partial<RunRecord>): void => {
    record = { ...record, ...changes, heartbeat: new Date().toISOString() };
    writeRecord(runDir, record);
  };
  const wake = (): void => {
    for (const look of waiting) look();
  };
  const heart = setInterval(() => {
    try {
      write({});
    } catch (error) {
      onWriteError(error);
    }
  }, heartbeatIntervalMs);
  const ended: RunStateKeeper['ended'] = ({ state, exitCode, error }) => ({
    ...record,
    state,
    exitCode,
    error: (error as RunErrorRecord | undefined) ?? null,
    times: { ...record.times, ended: new Date().toISOString() },
  });
  return {
    get record() {
      return record;
    },
    move: state => {
      if (!transitions[record.state].includes(state)) return false;
      write({ state });
      wake();
      return true;
    },
    progress: progress => {
      record = { ...record, progress: { ...record.progress, ...progress } };
    },
    ended,
    end: end => {
      if (isEndState(record.state)) return;
      clearInterval(heart);
      // In memory first: when the disk is full the run is over all the same.
      record = ended(end);
      try {
        write({});
      } finally {
        wake();
      }
    },
    until: test =>
      new Promise(resolve => {
        const look = (): void => {
          if (!test(record.state) && !isEndState(record.state)) return;
          waiting.delete(look);
          resolve(record.state);
        };
        waiting.add(look);
        look();
      }),
  };
}
