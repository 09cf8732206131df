import type { RunHandle } from '../index.ts';
import type { Options } from './command.ts';
import { exitCodes } from './exit-codes.ts';
import { followRun } from './follow-run.ts';
import { text } from './options.ts';
import type { Output } from './output.ts';

/** Starts a run that goes on by itself and says how to look at it and how to stop it. */
export async function detachRun(begin: () => Promise<RunHandle>, options: Options, output: Output): Promise<number> {
  const run = await begin();
  // `resume` of a complete run has started nothing.
  if (run.wasComplete) return followRun(async () => run, output, 0);
  const name = nameOf(run, options);
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

/** The id where the default folder holds the run; else its path, which every folder understands. */
function nameOf(run: RunHandle, options: Options): string {
  const isElsewhere = text(options, 'runs-dir') !== undefined || text(options, 'run-dir') !== undefined;
  if (!isElsewhere) return run.id;
  return /^[\w./+:@-]+$/.test(run.dir) ? run.dir : `'${run.dir.replaceAll("'", "'\\''")}'`;
}
