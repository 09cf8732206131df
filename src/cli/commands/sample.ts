import { RcmBridgeError } from '../../errors/index.ts';
import type { SampleOptions } from '../../index.ts';
import type { Command, Options } from '../command.ts';
import { countedWork } from '../counted-work.ts';
import { consentOptions, pythonOption, runsDirOption, text, texts, wholeNumber } from '../options.ts';

const devices = ['auto', 'cpu', 'cuda'] as const;

export const sample: Command = {
  command: 'sample <weights>',
  describe: 'Draw samples from a run, an export folder, a teacher or released weights',
  options: yargs =>
    consentOptions(pythonOption(runsDirOption(yargs)))
      .positional('weights', {
        type: 'string',
        describe: 'A run, an export folder, a model folder as downloaded, or a weights file in one of them',
      })
      .option('steps', {
        type: 'string',
        requiresArg: true,
        describe: 'Sampler steps: 1, 2 or 4 (default 4; a teacher: its own)',
      })
      .option('num', { type: 'string', requiresArg: true, describe: 'How many samples (default 10, or 1 a prompt)' })
      .option('seed', { type: 'string', requiresArg: true, describe: 'Seed of the noise (default 0)' })
      .option('label', { type: 'string', requiresArg: true, describe: 'Class label; without it the labels take turns' })
      .option('prompt', { type: 'string', array: true, nargs: 1, describe: 'What to draw; may be given several times' })
      .option('prompts', {
        type: 'string',
        requiresArg: true,
        describe: 'A file with one prompt a line, builtin:video-8 or builtin:image-8',
      })
      .option('teacher', { type: 'boolean', describe: "Sample the run's teacher, or released weights, with guidance" })
      .option('encoders', {
        type: 'string',
        requiresArg: true,
        describe: 'Folder or hf: locator with text encoder, tokenizer and VAE (default: beside the weights)',
      })
      .option('frames', {
        type: 'string',
        requiresArg: true,
        describe: 'Frames of a video, 4n+1 (default: as trained)',
      })
      .option('height', { type: 'string', requiresArg: true, describe: 'Height in pixels (default: as trained)' })
      .option('width', { type: 'string', requiresArg: true, describe: 'Width in pixels (default: as trained)' })
      .option('device', { choices: devices, requiresArg: true, describe: 'Where prompts are drawn (default auto)' })
      .option('out', { type: 'string', requiresArg: true, describe: 'Folder for the samples (default ./samples)' }),
  run: async (options, output) => {
    const request = sampleOptions(options);
    return countedWork(options, output, 'files that were complete stay.', async (bridge, { signal, progress }) => {
      const result = await bridge.sample(String(text(options, 'weights')), {
        ...request,
        signal,
        onProgress: progress.show,
      });
      progress.end();
      output.result({ ...result }, result.files.join('\n'));
    });
  },
};

function sampleOptions(options: Options): SampleOptions {
  const steps = wholeNumber(options, 'steps', 1);
  const teacher = options.teacher === true;
  if (steps !== undefined && ![1, 2, 4].includes(steps) && !teacher) {
    throw new RcmBridgeError('E_USAGE', `--steps takes 1, 2 or 4 for a student, not ${steps}.`, {
      hint: 'The teacher takes any number: add --teacher.',
    });
  }
  const given = {
    steps,
    num: wholeNumber(options, 'num', 1),
    label: wholeNumber(options, 'label', 0),
    frames: wholeNumber(options, 'frames', 1),
    height: wholeNumber(options, 'height', 1),
    width: wholeNumber(options, 'width', 1),
    encoders: text(options, 'encoders'),
    device: devices.find(known => known === text(options, 'device')),
  };
  const known = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const list = text(options, 'prompts');
  const prompts = texts(options, 'prompt');
  if (list !== undefined && prompts.length > 0) {
    throw new RcmBridgeError('E_USAGE', '--prompt and --prompts were given.', { hint: 'Use one of them.' });
  }
  return {
    ...(known as SampleOptions),
    prompts: list ?? prompts,
    seed: wholeNumber(options, 'seed', 0) ?? 0,
    teacher,
    out: text(options, 'out') ?? 'samples',
  };
}
