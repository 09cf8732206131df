import { RcmBridgeError } from '../../errors/index.ts';
import type { Command } from '../command.ts';
import { withBridge } from '../open-bridge.ts';
import { consentOptions, pythonOption, runsDirOption, text, wholeNumber } from '../options.ts';

export const sample: Command = {
  command: 'sample <weights>',
  describe: 'Draw samples from a run, an export folder or a teacher folder',
  options: yargs =>
    consentOptions(pythonOption(runsDirOption(yargs)))
      .positional('weights', {
        type: 'string',
        describe: 'A run, an export folder, or a weights file beside a sampler.json',
      })
      .option('steps', {
        type: 'string',
        requiresArg: true,
        describe: 'Sampler steps: 1, 2 or 4 (default 4; a teacher: its own)',
      })
      .option('num', { type: 'string', requiresArg: true, describe: 'How many samples (default 10)' })
      .option('seed', { type: 'string', requiresArg: true, describe: 'Seed of the noise (default 0)' })
      .option('label', { type: 'string', requiresArg: true, describe: 'Class label; without it the labels take turns' })
      .option('teacher', { type: 'boolean', describe: "Sample the run's teacher instead" })
      .option('out', { type: 'string', requiresArg: true, describe: 'Folder for the samples (default ./samples)' }),
  run: (options, output) => {
    const steps = wholeNumber(options, 'steps', 1);
    const label = wholeNumber(options, 'label', 0);
    const request = {
      num: wholeNumber(options, 'num', 1) ?? 10,
      seed: wholeNumber(options, 'seed', 0) ?? 0,
      teacher: options.teacher === true,
      out: text(options, 'out') ?? 'samples',
      ...(steps === undefined ? {} : { steps }),
      ...(label === undefined ? {} : { label }),
    };
    if (steps !== undefined && ![1, 2, 4].includes(steps) && !request.teacher) {
      throw new RcmBridgeError('E_USAGE', `--steps takes 1, 2 or 4 for a student, not ${steps}.`, {
        hint: 'The teacher takes any number: add --teacher.',
      });
    }
    return withBridge(options, output, async bridge => {
      const result = await bridge.sample(String(text(options, 'weights')), request);
      output.result({ ...result }, result.files.join('\n'));
      return 0;
    });
  },
};
