import type { ActivityName } from '../protocol/index.ts';

/** Two different silences: the interpreter is stuck, or it lives and the job makes no step. */
export type HangKind = 'noHeartbeat' | 'noStep';

/** How long each kind of silence may last, in milliseconds. */
export interface HangBudgets {
  readonly noHeartbeatMs: number;
  /** Least budget of a training step; the real one is 20 times the usual time of a step if that is longer. */
  readonly trainingMs: number;
  /** The first step of an activity: kernels are compiled, files are read. */
  readonly firstStepMs: number;
  readonly loadingMs: number;
  readonly compilingMs: number;
  readonly samplingMs: number;
  readonly evaluatingMs: number;
  readonly checkpointingMs: number;
}

const minuteMs = 60_000;

export const defaultBudgets: HangBudgets = {
  noHeartbeatMs: minuteMs,
  trainingMs: minuteMs,
  firstStepMs: 20 * minuteMs,
  loadingMs: 30 * minuteMs,
  compilingMs: 60 * minuteMs,
  samplingMs: 60 * minuteMs,
  evaluatingMs: 120 * minuteMs,
  checkpointingMs: 30 * minuteMs,
};

const usualSteps = 20;
const stepTimeWeight = 0.1;

/** Judges heartbeats. Time is given from outside, so that tests need no waiting. */
export interface Watchdog {
  /** A heartbeat or an event says what the job does. */
  seen(activity: ActivityName, step: number, nowMs: number): void;
  /** Something came from the interpreter. */
  alive(nowMs: number): void;
  /** A job that stands still on request does not hang. */
  pause(paused: boolean, nowMs: number): void;
  /** This process itself was asleep or busy: start all clocks anew. */
  forgive(nowMs: number): void;
  check(nowMs: number): HangKind | undefined;
}

export function createWatchdog(nowMs: number, budgets: HangBudgets = defaultBudgets): Watchdog {
  let heardAt = nowMs;
  let movedAt = nowMs;
  let activity: ActivityName = 'loading';
  let step = 0;
  let paused = false;
  let usualStepMs: number | undefined;

  const move = (next: ActivityName, nextStep: number, now: number): void => {
    if (next !== activity) usualStepMs = next === 'training' ? usualStepMs : undefined;
    else if (nextStep > step) {
      const stepMs = (now - movedAt) / (nextStep - step);
      usualStepMs = usualStepMs === undefined ? stepMs : usualStepMs + stepTimeWeight * (stepMs - usualStepMs);
    }
    activity = next;
    step = nextStep;
    movedAt = now;
  };

  const budgetMs = (): number => {
    if (activity === 'idle' || paused) return Number.POSITIVE_INFINITY;
    if (activity !== 'training') return budgets[`${activity}Ms`];
    return usualStepMs === undefined ? budgets.firstStepMs : Math.max(budgets.trainingMs, usualSteps * usualStepMs);
  };

  return {
    seen: (next, nextStep, now) => {
      heardAt = now;
      if (next !== activity || nextStep !== step) move(next, nextStep, now);
    },
    alive: now => {
      heardAt = now;
    },
    pause: (value, now) => {
      paused = value;
      movedAt = now;
    },
    forgive: now => {
      heardAt = now;
      movedAt = now;
    },
    check: now => {
      if (now - heardAt > budgets.noHeartbeatMs) return 'noHeartbeat';
      return now - movedAt > budgetMs() ? 'noStep' : undefined;
    },
  };
}
