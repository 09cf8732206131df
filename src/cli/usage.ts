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
  const { entry, inner, prefix } = commandOf(argv, entries);
  const known = namesFor(entry, inner, entries);
  const unknown = unknownName(error.message, argv, known);
  if (unknown === undefined) {
    const { message, hint } = inPlainWords(error.message, inner ?? entry);
    return usage(message, hint ?? `See \`${prefix} --help\`.`);
  }
  const given = argv.find(word => word.replace(/^(--no-|-+)/, '').split('=')[0] === unknown) ?? unknown;
  const isFlag = given.startsWith('-');
  const close = nearest(unknown, isFlag ? known.flags.filter(name => name.length > 1) : known.words);
  const what = isFlag
    ? `unknown option ${given.split('=')[0]}`
    : known.words.length > 0
      ? `unknown command "${unknown}"`
      : `unexpected word "${unknown}"`;
  return usage(
    `${what} for \`${prefix}\`.`,
    close ? `Did you mean ${/^(--no-|-*)/.exec(given)?.[0]}${close}?` : `See \`${prefix} --help\`.`,
  );
}

/** What to do about an E_USAGE that says nothing itself: the help of the very command. */
export const helpHint = (argv: readonly string[], entries: readonly (Command | CommandGroup)[]): string =>
  `See \`${commandOf(argv, entries).prefix} --help\`.`;

/** The command that the words name, and the words themselves: `rcm-bridge runs list`. */
function commandOf(argv: readonly string[], entries: readonly (Command | CommandGroup)[]) {
  const words = argv.filter(word => !word.startsWith('-'));
  const entry = entries.find(candidate => nameOf(candidate) === words[0]);
  const inner = entry && 'commands' in entry ? entry.commands.find(c => nameOf(c) === words[1]) : undefined;
  const prefix = ['rcm-bridge', ...(entry ? [nameOf(entry)] : []), ...(inner ? [nameOf(inner)] : [])].join(' ');
  return { entry, inner, prefix };
}

const usage = (message: string, hint: string): RcmBridgeError => new RcmBridgeError('E_USAGE', message, { hint });

/** yargs throws plain errors and YError; ours and the runtime's have other names. */
const isUsageError = (error: Error): boolean =>
  error.name === 'YError' ||
  (error.name === 'Error' && /argument|option|Invalid values|Name (a|what)|must be/i.test(error.message));

/** The first word or option that yargs does not know. Without a command it does not look at the options: we do. */
function unknownName(message: string, argv: readonly string[], { flags }: KnownNames): string | undefined {
  if (!message.startsWith('Name ')) return /^Unknown arguments?: (.+)$/.exec(message)?.[1]?.split(', ')[0];
  const names = argv.flatMap(word => /^--(?:no-)?([^=]+)/.exec(word)?.[1] ?? []);
  return names.find(name => !flags.includes(name));
}

/** What yargs says, without its own words for things. */
function inPlainWords(
  message: string,
  entry: Command | CommandGroup | undefined,
): { readonly message: string; readonly hint?: string } {
  const text = message.replace(/\s+/g, ' ').trim();
  const [, option, given = '', choices = ''] = /Argument: ([\w-]+), Given: "?(.*?)"?, Choices: (.+)$/.exec(text) ?? [];
  if (option !== undefined) {
    const words = choices.replaceAll('"', '').split(', ');
    const close = nearest(given, words);
    const said = { message: `--${option} takes ${words.join(', ')}, not "${given}".` };
    return close ? { ...said, hint: `Did you mean ${close}?` } : said;
  }
  const lacking = /^Not enough arguments following: ([\w-]+)/.exec(text)?.[1];
  if (lacking !== undefined) return { message: `${lacking.length === 1 ? '-' : '--'}${lacking} needs a value.` };
  if (entry && /^Not enough non-option arguments/.test(text)) {
    return { message: `\`${nameOf(entry)}\` needs ${entry.command.split(' ').slice(1).join(' ')}.` };
  }
  return { message: text };
}

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
  return { flags: [...Object.keys(described.getOptions().key), 'help', 'version'], words };
}
