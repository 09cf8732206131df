import yargs, { type Argv } from 'yargs';
import { isRcmBridgeError } from '../errors/index.ts';
import type { Command, CommandGroup } from './command.ts';
import { commands } from './commands/index.ts';
import { exitCodeHelp, exitCodes } from './exit-codes.ts';
import { packageVersion } from './main.ts';
import { globalOptions, outputOptions } from './options.ts';
import { createOutput, describeError, endQuietlyOnClosedPipe, usesColour } from './output.ts';
import { explainUsage, helpHint } from './usage.ts';

/** Parses the words, runs the command and resolves with the exit code. Never rejects. */
export async function run(argv: readonly string[]): Promise<number> {
  endQuietlyOnClosedPipe();
  const verbosity = argv.filter(word => /^-v+$|^--verbose$/.test(word)).length;
  let exitCode: number = exitCodes.ok;
  try {
    await program(argv, code => {
      exitCode = code;
    }).parseAsync();
    return exitCode;
  } catch (error) {
    const known = isRcmBridgeError(error) ? error : explainUsage(error, argv, commands);
    const colour = usesColour(process.env, Boolean(process.stderr.isTTY));
    process.stderr.write(`${describeError(known, verbosity, colour, helpHint(argv, commands))}\n`);
    return isRcmBridgeError(known) ? known.exitCode : exitCodes.runFailed;
  }
}

function program(argv: readonly string[], end: (exitCode: number) => void): Argv {
  const parser = yargs([...argv])
    .scriptName('rcm-bridge')
    .usage('$0 <command> [options]\n\nDistil diffusion models to 1-4 network calls with rCM.')
    .parserConfiguration({ 'dot-notation': false })
    .exitProcess(false)
    .fail(false)
    .strict()
    .help()
    .alias('help', 'h')
    .version(packageVersion())
    .epilogue(exitCodeHelp)
    .wrap(Math.min(110, process.stdout.columns ?? 110));
  globalOptions(parser);
  for (const entry of commands) add(parser, entry, end);
  return parser.demandCommand(1, 'Name a command.');
}

function add(parser: Argv, entry: Command | CommandGroup, end: (exitCode: number) => void): void {
  if ('commands' in entry) {
    parser.command(entry.command, entry.describe, group => {
      for (const command of entry.commands) add(group, command, end);
      return group.demandCommand(1, `Name what \`${entry.command}\` should do.`);
    });
    return;
  }
  parser.command(entry.command, entry.describe, entry.options, async options => {
    end(await entry.run(options, createOutput(outputOptions(options))));
  });
}
