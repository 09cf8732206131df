import { type GpuName, gpuNames } from '../../plan/machines.ts';
import type { Command } from '../command.ts';
import { withBridge } from '../open-bridge.ts';
import { pairs, setOption, text, wholeNumber } from '../options.ts';

export const plan: Command = {
  command: 'plan [config]',
  describe: 'Say what a distillation takes: memory, time, data, GPUs; and what to change where it does not fit',
  options: yargs =>
    setOption(yargs)
      .positional('config', { type: 'string', describe: 'A file, or a preset (default digits-rcm)' })
      .option('gpu', { type: 'string', choices: gpuNames, describe: 'Plan for this GPU instead of those found here' })
      .option('gpus', { type: 'string', requiresArg: true, describe: 'GPUs of each machine' })
      .option('nodes', { type: 'string', requiresArg: true, describe: 'Machines' }),
  run: (options, output) => {
    const gpu = text(options, 'gpu') as GpuName | undefined;
    const gpus = wholeNumber(options, 'gpus', 1);
    const nodes = wholeNumber(options, 'nodes', 1);
    return withBridge(options, output, async bridge => {
      const planned = await bridge.plan(text(options, 'config') ?? 'digits-rcm', {
        set: pairs(options),
        ...(gpu === undefined ? {} : { gpu }),
        ...(gpus === undefined ? {} : { gpus }),
        ...(nodes === undefined ? {} : { nodes }),
      });
      const { text: words, ...document } = planned;
      output.result(document, words);
      return 0;
    });
  },
};
