import type { Command } from '../command.ts';
import { detachRun } from '../detach-run.ts';
import { followRun } from '../follow-run.ts';
import { withBridge } from '../open-bridge.ts';
import {
  consentOptions,
  detachOption,
  graceMs,
  graceOption,
  pairs,
  placement,
  placementOptions,
  pythonOption,
  runsDirOption,
  setOption,
  text,
  wholeNumber,
} from '../options.ts';

export const resume: Command = {
  command: 'resume <run>',
  describe: 'Go on with a run from its last checkpoint, or start a child run from any',
  options: yargs =>
    graceOption(detachOption(consentOptions(pythonOption(runsDirOption(placementOptions(setOption(yargs)))))))
      .positional('run', { type: 'string', describe: 'An id, the start of one, a path, or "last"' })
      .option('from-step', {
        type: 'string',
        requiresArg: true,
        describe:
          'Start a child run from the checkpoint of this step; the run itself stays as it is (--set: the newest)',
      })
      .option('allow-drift', { type: 'boolean', describe: 'Go on with another torch version; results will differ' }),

  run: (options, output) => {
    const grace = graceMs(options);
    const fromStep = wholeNumber(options, 'from-step', 0);
    return withBridge(options, output, bridge => {
      const given = {
        allowDrift: options['allow-drift'] === true,
        set: pairs(options),
        ...placement(options),
        ...(fromStep === undefined ? {} : { fromStep }),
      };
      const name = String(text(options, 'run'));
      if (options.detach === true) {
        return detachRun(() => bridge.resume(name, { ...given, detached: true }), output);
      }
      return followRun(begun => bridge.resume(name, { ...given, ...begun }), output, grace);
    });
  },
};
