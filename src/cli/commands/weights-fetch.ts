import type { Command } from '../command.ts';
import { countedWork } from '../counted-work.ts';
import { consentOptions, pythonOption, text, texts } from '../options.ts';

const layouts = ['official', 'diffusers'] as const;

export const fetch: Command = {
  command: 'fetch <locator>',
  describe:
    'Fetch published weights: says name, size, licence and place first, goes on where it stopped, checks hashes',
  options: yargs =>
    consentOptions(pythonOption(yargs))
      .positional('locator', { type: 'string', describe: 'hf:OWNER/NAME or hf:OWNER/NAME@REVISION' })
      .option('download', { type: 'boolean', describe: 'Agree to the download' })
      .option('revision', { type: 'string', requiresArg: true, describe: 'Branch, tag or commit (default main)' })
      .option('layout', {
        choices: layouts,
        requiresArg: true,
        describe: 'Which, where a repository holds both (default: the original)',
      })
      .option('file', {
        type: 'string',
        array: true,
        nargs: 1,
        describe: 'This weights file of the repository, instead of the one its name and layout show',
      })
      .option('with-encoders', { type: 'boolean', describe: 'The VAE and the text encoder, too' }),
  run: (options, output) => {
    const layout = layouts.find(known => known === text(options, 'layout'));
    const revision = text(options, 'revision');
    const stopped = 'what has arrived is kept, and the same command goes on from there.';
    return countedWork(options, output, stopped, async (bridge, { signal, progress }) => {
      const { locator, path, plan, ...rest } = await bridge.weights.fetch(String(text(options, 'locator')), {
        files: texts(options, 'file'),
        encoders: options['with-encoders'] === true,
        signal,
        onProgress: shown => progress.show({ ...shown, phase: `${shown.phase}: MB`, bytes: 0 }),
        ...(layout === undefined ? {} : { layout }),
        ...(revision === undefined ? {} : { revision }),
      });
      progress.end();
      const { hashes, downloadedBytes } = rest;
      if (plan)
        output.say(`${hashes.length} of ${plan.files.length} files have a hash on the hub; all are equal to it.`);
      if (plan && downloadedBytes === 0) output.say('Everything was here already.');
      output.result({ locator, path, ...plan, ...rest }, path);
    });
  },
};
