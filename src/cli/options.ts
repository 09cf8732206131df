import type { Argv } from 'yargs';
import { RcmBridgeError } from '../errors/index.ts';
import type { Options } from './command.ts';
import type { OutputFormat, OutputOptions } from './output.ts';

/** Options of every command. */
export const globalOptions = (yargs: Argv): Argv =>
  yargs
    .option('format', {
      choices: ['text', 'json', 'ndjson'] as const,
      default: 'text',
      describe: 'Form of the result on stdout',
      global: true,
    })
    .option('json', { type: 'boolean', describe: 'Same as --format json', global: true })
    .option('quiet', { alias: 'q', type: 'boolean', describe: 'Only errors on stderr', global: true })
    .option('verbose', { alias: 'v', type: 'count', describe: 'More on stderr (-vv: all)', global: true })
    .option('progress', {
      type: 'boolean',
      default: true,
      describe: 'Progress on stderr (--no-progress: none)',
      global: true,
    });

export function outputOptions(options: Options): OutputOptions {
  return {
    format: options.json === true ? 'json' : ((text(options, 'format') as OutputFormat | undefined) ?? 'text'),
    quiet: options.quiet === true,
    verbosity: Number(options.verbose ?? 0),
    progress: options.progress !== false,
  };
}

export const runsDirOption = (yargs: Argv): Argv =>
  yargs.option('runs-dir', { type: 'string', requiresArg: true, describe: 'Folder of the runs (default ./runs)' });

export const pythonOption = (yargs: Argv): Argv =>
  yargs.option('python', { type: 'string', requiresArg: true, describe: 'Python interpreter; it is never written to' });

export const consentOptions = (yargs: Argv): Argv =>
  yargs
    .option('yes', { alias: 'y', type: 'boolean', describe: 'Agree to what the command says it will do' })
    .option('offline', { type: 'boolean', describe: 'Download and install nothing' });

export const detachOption = (yargs: Argv): Argv =>
  yargs.option('detach', {
    type: 'boolean',
    describe: 'Leave the run to a process of its own, print its id and end',
  });

/** Which machine of several this is, and where they meet. */
export const placementOptions = (yargs: Argv): Argv =>
  yargs
    .option('rdzv', {
      type: 'string',
      requiresArg: true,
      describe: 'Where several machines meet, HOST:PORT; machine 0 has that address and listens there',
    })
    .option('node-rank', {
      type: 'string',
      requiresArg: true,
      describe: 'Which of them this is, from 0, which leads (default in a Slurm job: SLURM_NODEID)',
    });

export function placement(options: Options): { readonly rendezvous?: string; readonly nodeRank?: number } {
  const rendezvous = text(options, 'rdzv');
  const nodeRank = wholeNumber(options, 'node-rank', 0);
  return {
    ...(rendezvous === undefined ? {} : { rendezvous }),
    ...(nodeRank === undefined ? {} : { nodeRank }),
  };
}

/** `--set key.path=value`, one pair each time. */
export const setOption = (yargs: Argv): Argv =>
  yargs.option('set', {
    alias: 's',
    type: 'string',
    array: true,
    nargs: 1,
    describe: 'Set a config key: key.path=value (value read as YAML)',
  });

/** The option as text; given several times, the last counts. Environment variables come first in `fallbacks`. */
export function text(options: Options, name: string): string | undefined {
  const value = last(options[name]);
  return value === undefined ? undefined : String(value);
}

/** All values of an option that may be given several times. */
export const texts = (options: Options, name: string): readonly string[] =>
  ((options[name] as readonly unknown[] | undefined) ?? []).map(String);

/** The option as a whole number of at least `least`; anything else is a usage error. */
export function wholeNumber(options: Options, name: string, least: number): number | undefined {
  const value = last(options[name]);
  if (value === undefined) return undefined;
  const number = Number(value);
  if (Number.isSafeInteger(number) && number >= least && String(value).trim() !== '') return number;
  throw new RcmBridgeError(
    'E_USAGE',
    `--${name} takes a whole number of at least ${least}, not ${JSON.stringify(value)}.`,
  );
}

export const pairs = (options: Options): readonly string[] => (options.set as readonly string[] | undefined) ?? [];

const last = (value: unknown): unknown => (Array.isArray(value) ? value.at(-1) : value);

/** `30s`, `5m`, `500ms` or seconds, in milliseconds. */
export function duration(options: Options, name: string, fallbackMs: number): number {
  const value = text(options, name);
  if (value === undefined) return fallbackMs;
  const match = /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(value);
  const unitMs = { ms: 1, s: 1_000, m: 60_000 } as const;
  if (match) return Number(match[1]) * unitMs[(match[2] ?? 's') as keyof typeof unitMs];
  throw new RcmBridgeError('E_USAGE', `--${name} takes a time such as 30s or 5m, not ${JSON.stringify(value)}.`, {
    hint: `Example: --${name} 30s`,
  });
}

/** `--grace`: how long the first Ctrl-C waits for the checkpoint. */
export const graceOption = (yargs: Argv): Argv =>
  yargs.option('grace', {
    type: 'string',
    requiresArg: true,
    describe: 'Time to stop in after the first Ctrl-C (default 30s)',
  });

export const graceMs = (options: Options): number => duration(options, 'grace', graceDefaultMs);

const graceDefaultMs = 30_000;
