/** Progress of work on counted things: one line that renews itself on a terminal, else a line each ten seconds. */
import type { WeightsProgress } from '../index.ts';
import { duration } from '../logging/progress.ts';
import { inGigabytes } from '../logging/sizes.ts';

const lineIntervalMs = 10_000;
const redrawIntervalMs = 100;

export interface CountedProgress {
  show(progress: WeightsProgress): void;
  end(): void;
}

export function countedProgress(enabled: boolean): CountedProgress {
  if (!enabled) return { show: () => undefined, end: () => undefined };
  const { stderr } = process;
  const renews = Boolean(stderr.isTTY) && !process.env.CI && process.env.TERM !== 'dumb';
  let lastMs = Date.now();
  let shown = false;
  return {
    show: ({ phase, done, total, bytes, secondsLeft }) => {
      if (Date.now() - lastMs < (renews ? redrawIntervalMs : lineIntervalMs)) return;
      lastMs = Date.now();
      shown = renews;
      const left = secondsLeft === undefined ? '' : `, ${duration(secondsLeft)} left`;
      const line = `${phase} ${done} of ${total}${bytes > 0 ? `, ${inGigabytes(bytes)}` : ''}${left}`;
      stderr.write(renews ? `\r\u001b[2K${line}` : `${line}\n`);
    },
    end: () => {
      if (shown) stderr.write('\r\u001b[2K');
    },
  };
}
