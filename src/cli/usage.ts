import yargs, { type Argv } from 'yargs';
import { RcmBridgeError } from '../errors/index.ts';
import { nearest } from '../nearest.ts';
import type { Command, CommandGroup } from './command.ts';
import { globalOptions } from './options.ts';

/**
 * What yargs refused, as E_USAGE that names the nearest word. Errors that are not yargs's own come back unchanged,
 * so that a defect of ours is never shown as a mistake of the user's.
 */
export function explainUsage(
  error: unknown,
  argv: readonly string[],
  entries: readonly (Command | CommandGroup)[],
): unknown {
  if (!(error instanceof Error) || !isUsageError(error)) return error;
  const words = argv.filter(word => !word.startsWith('-'));
  const entry = entries.find(candidate => nameOf(candidate) === words[0]);
  const inner = entry && 'commands' in entry ? entry.commands.find(c => nameOf(c) === words[1]) : undefined;
  const prefix = ['rcm-bridge', ...(entry ? [nameOf(entry)] : []), ...(inner ? [nameOf(inner)] : [])].join(' ');
  const unknown = /^Unknown arguments?: (.+)$/.exec(error.message)?.[1]?.split(', ')[0];
  if (unknown === undefined) return usage(oneSentence(error.message), `See \`${prefix} --help\`.`);

  const known = namesFor(entry, inner, entries);
  const given = argv.find(word => word.replace(/^-+/, '').split('=')[0] === unknown) ?? unknown;
  const isFlag = given.startsWith('-');
  const close = nearest(unknown, isFlag ? known.flags : known.words);
  const what = isFlag
    ? `unknown option ${given.split('=')[0]}`
    : known.words.length > 0
      ? `unknown command "${unknown}"`
      : `unexpected word "${unknown}"`;
  return usage(
    `${what} for \`${prefix}\`.`,
    close ? `Did you mean ${isFlag ? '--' : ''}${close}?` : `See \`${prefix} --help\`.`,
  );
}

const usage = (message: string, hint: string): RcmBridgeError => new RcmBridgeError('E_USAGE', message, { hint });

/** yargs throws plain errors and YError; ours and the runtime's have other names. */
const isUsageError = (error: Error): boolean =>
  error.name === 'YError' ||
  (error.name === 'Error' && /argument|option|Invalid values|Name (a|what)|must be/i.test(error.message));

const oneSentence = (message: string): string => message.replace(/\s+/g, ' ').trim();

const nameOf = (entry: Command | CommandGroup): string => entry.command.split(' ')[0] ?? '';

interface KnownNames {
  readonly flags: readonly string[];
  readonly words: readonly string[];
}

function namesFor(
  entry: Command | CommandGroup | undefined,
  inner: Command | undefined,
  entries: readonly (Command | CommandGroup)[],
): KnownNames {
  const command = inner ?? (entry && !('commands' in entry) ? entry : undefined);
  const words = command ? [] : entry && 'commands' in entry ? entry.commands.map(nameOf) : entries.map(nameOf);
  const parser = globalOptions(yargs([]));
  const described = (command ? command.options(parser) : parser) as Argv & { getOptions(): { key: object } };
  return { flags: Object.keys(described.getOptions().key), words };
}
