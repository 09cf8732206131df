import type { Argv } from 'yargs';
import type { Output } from './output.ts';

/** One command: what it is called, its options, and what it does; `run` resolves with the exit code. */
export interface Command {
  readonly command: string;
  readonly describe: string;
  readonly options: (yargs: Argv) => Argv;
  // Options are checked by yargs and read through the functions of options.ts.
  readonly run: (options: Options, output: Output) => Promise<number>;
}

/** A word that only holds other commands, such as `runs`. */
export interface CommandGroup {
  readonly command: string;
  readonly describe: string;
  readonly commands: readonly Command[];
}

export type Options = Readonly<Record<string, unknown>>;
