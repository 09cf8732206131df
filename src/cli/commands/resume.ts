import type { Command } from '../command.ts';
import { detachRun } from '../detach-run.ts';
import { followRun } from '../follow-run.ts';
import { withBridge } from '../open-bridge.ts';
import { consentOptions, detachOption, duration, pythonOption, runsDirOption, text } from '../options.ts';

export const resume: Command = {
  command: 'resume <run>',
  describe: 'Go on with a run from its last checkpoint',
  options: yargs =>
    detachOption(consentOptions(pythonOption(runsDirOption(yargs))))
      .positional('run', { type: 'string', describe: 'An id, the start of one, a path, or "last"' })
      .option('allow-drift', { type: 'boolean', describe: 'Go on with another torch version; results will differ' })
      .option('grace', {
        type: 'string',
        requiresArg: true,
        describe: 'Time to stop in after the first Ctrl-C (default 30s)',
      }),
  run: (options, output) => {
    const graceMs = duration(options, 'grace', 30_000);
    return withBridge(options, output, bridge => {
      const allowDrift = options['allow-drift'] === true;
      const name = String(text(options, 'run'));
      if (options.detach === true) {
        return detachRun(() => bridge.resume(name, { allowDrift, detached: true }), options, output);
      }
      return followRun(begun => bridge.resume(name, { allowDrift, ...begun }), output, graceMs);
    });
  },
};
