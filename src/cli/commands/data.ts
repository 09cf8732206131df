import type { Argv } from 'yargs';
import type { Bridge, WeightsProgress } from '../../index.ts';
import { inGigabytes } from '../../logging/sizes.ts';
import type { Command, CommandGroup, Options } from '../command.ts';
import { askOnTerminal, isOn } from '../consent.ts';
import { countedWork } from '../counted-work.ts';
import { consentOptions, pairs, pythonOption, setOption, text, wholeNumber } from '../options.ts';
import type { Output } from '../output.ts';

const setOptions = (yargs: Argv): Argv =>
  setOption(consentOptions(pythonOption(yargs)))
    .option('out', { type: 'string', requiresArg: true, describe: 'Folder of the shards (default: data.path)' })
    .option('gpus', {
      type: 'string',
      requiresArg: true,
      describe: 'Processes, each with a GPU of its own (default: those of the config that are here)',
    });

const build: Command = {
  command: 'build [config]',
  describe: 'Have the teacher of a config sample a training set from prompts; goes on where it stopped',
  options: yargs =>
    setOptions(yargs)
      .positional('config', { type: 'string', describe: 'A file or a preset with a model that reads prompts' })
      .option('prompts', {
        type: 'string',
        requiresArg: true,
        demandOption: true,
        describe: 'A file with one prompt a line; for a try builtin:video-8 or builtin:image-8',
      })
      .option('num', { type: 'string', requiresArg: true, describe: 'Samples (default: one a prompt)' })
      .option('steps', { type: 'string', requiresArg: true, describe: 'Solver steps of the teacher (default 100)' }),
  run: (options, output) =>
    work(options, output, async (bridge, shared) => {
      const num = wholeNumber(options, 'num', 1);
      const steps = wholeNumber(options, 'steps', 1);
      const agreed = options.yes === true || isOn(process.env.RCM_BRIDGE_YES);
      const built = await bridge.data.build(text(options, 'config') ?? 'digits-rcm', {
        ...shared,
        prompts: String(text(options, 'prompts')),
        ...(num === undefined ? {} : { num }),
        ...(steps === undefined ? {} : { steps }),
        ...(agreed ? {} : { confirm: askOnTerminal }),
      });
      const counts = `${built.samples} samples (${built.made} new) in ${shards(built.shards)}, ${inGigabytes(built.bytes)}`;
      output.say(counts);
      output.result({ ...built }, built.out);
    }),
};

const encode: Command = {
  command: 'encode <folder> [config]',
  describe: 'Encode captioned pictures or videos into a training set for a config; goes on where it stopped',
  options: yargs =>
    setOptions(yargs)
      .positional('folder', { type: 'string', describe: 'Folder that the list names files of' })
      .positional('config', { type: 'string', describe: 'A file or a preset with a model that reads prompts' })
      .option('list', {
        type: 'string',
        requiresArg: true,
        describe: 'CSV or JSONL with file and caption (default: the one in the folder)',
      }),
  run: (options, output) =>
    work(options, output, async (bridge, shared) => {
      const list = text(options, 'list');
      const encoded = await bridge.data.encode(
        String(text(options, 'folder')),
        text(options, 'config') ?? 'digits-rcm',
        { ...shared, ...(list === undefined ? {} : { list }) },
      );
      output.say(`${encoded.made} new samples; ${shards(encoded.shards)}, ${inGigabytes(encoded.bytes)}`);
      output.result({ ...encoded }, encoded.out);
    }),
};

const shards = (count: number): string => `${count} ${count === 1 ? 'shard' : 'shards'}`;

interface Shared {
  readonly set: readonly string[];
  readonly out?: string;
  readonly gpus?: number;
  readonly signal: AbortSignal;
  readonly onProgress: (progress: WeightsProgress) => void;
}

async function work(
  options: Options,
  output: Output,
  use: (bridge: Bridge, shared: Shared) => Promise<void>,
): Promise<number> {
  const out = text(options, 'out');
  const gpus = wholeNumber(options, 'gpus', 1);
  const given = {
    set: pairs(options),
    ...(out === undefined ? {} : { out }),
    ...(gpus === undefined ? {} : { gpus }),
  };
  const stopped = 'samples that are made stay, and the same command goes on from there.';
  return countedWork(options, output, stopped, async (bridge, { signal, progress }) => {
    await use(bridge, { ...given, signal, onProgress: progress.show });
    progress.end();
  });
}

export const data: CommandGroup = {
  command: 'data',
  describe: 'Make training data: from a teacher and prompts, or from pictures and videos',
  commands: [build, encode],
};
