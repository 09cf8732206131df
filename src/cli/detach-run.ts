import type { RunHandle } from '../index.ts';
import { exitCodes } from './exit-codes.ts';
import { followRun } from './follow-run.ts';
import type { Output } from './output.ts';
import { nameOfRun } from './run-name.ts';

/** Starts a run that goes on by itself and says how to look at it and how to stop it. */
export async function detachRun(begin: () => Promise<RunHandle>, output: Output): Promise<number> {
  const run = await begin();
  // `resume` of a complete run has started nothing.
  if (run.wasComplete) return followRun(async () => run, output, 0);
  const name = nameOfRun(run.id, run.dir);
  const commands = {
    show: `rcm-bridge runs show ${name}`,
    cancel: `rcm-bridge runs cancel ${name}`,
  };
  output.result(
    { id: run.id, dir: run.dir, state: run.state, commands },
    [run.id, `folder  ${run.dir}`, `follow  ${commands.show}`, `stop    ${commands.cancel}`].join('\n'),
  );
  return exitCodes.ok;
}
