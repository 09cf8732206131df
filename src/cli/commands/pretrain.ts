import type { Command } from '../command.ts';
import { start, startOptions } from './distill.ts';

export const pretrain: Command = {
  command: 'pretrain [config]',
  describe: 'Train a small teacher by flow matching',
  options: yargs => startOptions(yargs, 'pretrain.steps'),
  run: (options, output) => start('pretrain', options, output),
};
