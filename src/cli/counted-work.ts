/** Long work that is no run: progress of counted things on stderr, and a first Ctrl-C that ends it cleanly. */
import type { Bridge } from '../index.ts';
import { abortOnSignals } from './abort-on-signals.ts';
import type { Options } from './command.ts';
import { type CountedProgress, countedProgress } from './counted-progress.ts';
import { withBridge } from './open-bridge.ts';
import type { Output } from './output.ts';

export interface CountedWork {
  readonly signal: AbortSignal;
  readonly progress: CountedProgress;
}

/** @param stopped What a stop by a signal leaves behind, for people. @returns The exit code. */
export async function countedWork(
  options: Options,
  output: Output,
  stopped: string,
  use: (bridge: Bridge, work: CountedWork) => Promise<void>,
): Promise<number> {
  const progress = countedProgress(output.progress && !output.quiet);
  const signals = abortOnSignals();
  try {
    await withBridge(options, output, bridge => use(bridge, { signal: signals.signal, progress }));
    return 0;
  } catch (error) {
    const exitCode = signals.exitCode();
    if (exitCode === undefined) throw error;
    progress.end();
    output.say(`Stopped; ${stopped}`);
    return exitCode;
  } finally {
    progress.end();
    signals.stop();
  }
}
