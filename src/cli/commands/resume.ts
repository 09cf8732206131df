import type { Command } from '../command.ts';
import { detachRun } from '../detach-run.ts';
import { followRun } from '../follow-run.ts';
import { withBridge } from '../open-bridge.ts';
import { consentOptions, detachOption, duration, pythonOption, runsDirOption, text, wholeNumber } from '../options.ts';

export const resume: Command = {
  command: 'resume <run>',
  describe: 'Go on with a run from its last checkpoint',
  options: yargs =>
    detachOption(consentOptions(pythonOption(runsDirOption(yargs))))
      .positional('run', { type: 'string', describe: 'An id, the start of one, a path, or "last"' })
      .option('from-step', {
        type: 'string',
        requiresArg: true,
        describe: 'Step of the checkpoint to go on from (default: the newest whole one)',
      })
      .option('allow-drift', { type: 'boolean', describe: 'Go on with another torch version; results will differ' })
      .option('grace', {
        type: 'string',
        requiresArg: true,
        describe: 'Time to stop in after the first Ctrl-C (default 30s)',
      }),
  run: (options, output) => {
    const graceMs = duration(options, 'grace', 30_000);
    const fromStep = wholeNumber(options, 'from-step', 0);
    return withBridge(options, output, bridge => {
      const given = { allowDrift: options['allow-drift'] === true, ...(fromStep === undefined ? {} : { fromStep }) };
      const name = String(text(options, 'run'));
      if (options.detach === true) {
        return detachRun(() => bridge.resume(name, { ...given, detached: true }), output);
      }
      return followRun(begun => bridge.resume(name, { ...given, ...begun }), output, graceMs);
    });
  },
};
