/** What SIGINT, SIGTERM and SIGUSR1 mean to the process that owns a run. */
import type { RunHandle } from './handle.ts';

/**
 * A scheduler tells all processes of a job, and its script and srun pass the same on: within this time they are one
 * signal. Ctrl-C is not: who presses it twice means it.
 */
const sameSignalMs = 5_000;

/** Exit codes of a second signal. */
const endCodes = { SIGINT: 130, SIGTERM: 143, SIGUSR1: 143 } as const;

export interface StopOptions {
  /** Time to stop in; then the sidecar is killed. */
  readonly graceMs: number;
  readonly onFirst?: () => void;
}

/**
 * The first signal writes a checkpoint and stops the run; a second one ends this process at once, with 130 or 143.
 * Returns a function that puts the default behaviour back.
 */
export function stopOnSignals(run: RunHandle, { graceMs, onFirst }: StopOptions): () => void {
  let asked = false;
  let heardMs = 0;
  const onSignal = (signal: NodeJS.Signals): void => {
    if (asked) {
      const isSame = process.env.SLURM_JOB_ID !== undefined && signal !== 'SIGINT';
      if (isSame && performance.now() - heardMs < sameSignalMs) return;
      // The sidecar dies with this process, and so do its children.
      process.exit(endCodes[signal as keyof typeof endCodes]);
    }
    asked = true;
    heardMs = performance.now();
    onFirst?.();
    run.cancel({ checkpoint: true, deadlineMs: graceMs }).catch(() => undefined);
  };
  const signals = Object.keys(endCodes) as readonly NodeJS.Signals[];
  for (const signal of signals) process.on(signal, onSignal);
  return () => {
    for (const signal of signals) process.off(signal, onSignal);
  };
}
