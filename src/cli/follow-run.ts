import type { RunHandle, RunResult } from '../index.ts';
import { createProgress } from '../logging/progress.ts';
import { stopOnSignals } from '../runs/stop-signals.ts';
import { exitCodes } from './exit-codes.ts';
import type { Output } from './output.ts';
import { nameOfRun } from './run-name.ts';

/** Starts the run; `onCreated` is called before its checks, so that signals are heard from then on. */
export type Begin = (options: { readonly onCreated: (run: RunHandle) => void }) => Promise<RunHandle>;

/**
 * Follows a run to its end: progress on stderr, events on stdout with --format ndjson, the result at the end.
 * The first Ctrl-C, SIGTERM or SIGUSR1 writes a checkpoint and stops; a second one ends at once with 130 or 143.
 */
export async function followRun(begin: Begin, output: Output, graceMs: number): Promise<number> {
  const progress = createProgress({ stream: process.stderr, enabled: output.progress && !output.quiet });
  // Until there is a run, the notice of a scheduler ends the command; Node would open its debugger.
  const onEarlyNotice = (): never => process.exit(exitCodes.stopped);
  process.on('SIGUSR1', onEarlyNotice);
  let stopListening = (): void => void process.off('SIGUSR1', onEarlyNotice);
  const onCreated = (created: RunHandle): void => {
    stopListening();
    const onFirst = (): void => void output.say('Stopping after a checkpoint; once more to end at once.');
    stopListening = stopOnSignals(created, { graceMs, onFirst });
  };
  try {
    const run = await begin({ onCreated });
    // Not before: a refused command says two lines and no more.
    output.say(`Run ${run.id} in ${run.dir}`);
    if (run.node > 0) return await takePart(run, output);
    for await (const event of run) {
      progress.show(event);
      output.line({ ...event });
    }
    const exitCode = report(await run.result(), output);
    return run.wasComplete ? exitCodes.ok : exitCode;
  } finally {
    progress.end();
    stopListening();
  }
}

/** Another machine than the one that leads: that one shows and prints; all end with the code of the run. */
async function takePart(run: RunHandle, output: Output): Promise<number> {
  const { state, step, exitCode } = await run.result();
  output.say(`Node ${run.node}: the run ${state} at step ${step}.`);
  return exitCode;
}

function report(result: RunResult, output: Output): number {
  const unmet = result.scorecard?.gates.filter(gate => !gate.met) ?? [];
  const exitCode =
    result.state === 'stopped' ? exitCodes.stopped : unmet.length > 0 ? exitCodes.gateNotMet : exitCodes.ok;
  if (output.format !== 'ndjson') output.result({ ...result, exitCode }, describeResult(result));
  for (const gate of unmet) output.say(`Gate not met: ${gate.text}`);
  if (result.state === 'stopped')
    output.say(
      `Stopped at step ${result.step}. Go on with: rcm-bridge resume ${nameOfRun(result.runId, result.runDir)}`,
    );
  return exitCode;
}

function describeResult(result: RunResult): string {
  const lines = [
    `${result.state} at step ${result.step} after ${Math.round(result.wallSeconds)} s`,
    `run     ${result.runDir}`,
  ];
  for (const exported of result.exports) lines.push(`export  ${exported.path}`);
  if (result.report) lines.push(`report  ${result.report}`);
  return lines.join('\n');
}
