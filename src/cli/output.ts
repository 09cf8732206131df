import { errorCodes, isRcmBridgeError } from '../errors/index.ts';
import { toJson } from '../runs/json.ts';

export type OutputFormat = 'text' | 'json' | 'ndjson';

export interface OutputOptions {
  readonly format: OutputFormat;
  readonly quiet: boolean;
  readonly verbosity: number;
  readonly progress: boolean;
}

/** Where a command's words go: stdout carries results only, stderr carries text for people. */
export interface Output extends OutputOptions {
  /** One result. In text form `text` is printed, else the document with `"schema": 1`. */
  result(document: Readonly<Record<string, unknown>>, text: string): void;
  /** One line of a stream; only in ndjson form. */
  line(document: Readonly<Record<string, unknown>>): void;
  /** A sentence for people; silent with --quiet. */
  say(text: string): void;
}

/** Colour: NO_COLOR, then FORCE_COLOR, then whether stderr is a terminal outside CI. */
export function usesColour(env: NodeJS.ProcessEnv, isTerminal: boolean): boolean {
  if (env.NO_COLOR) return false;
  if (env.FORCE_COLOR) return env.FORCE_COLOR !== '0';
  return isTerminal && !env.CI;
}

export function createOutput(options: OutputOptions): Output {
  const print = (document: Readonly<Record<string, unknown>>) => {
    process.stdout.write(`${toJson({ schema: 1, ...document })}\n`);
  };
  return {
    ...options,
    result: (document, text) => (options.format === 'text' ? process.stdout.write(`${text}\n`) : print(document)),
    line: document => options.format === 'ndjson' && print(document),
    say: text => options.quiet || process.stderr.write(`${text}\n`),
  };
}

/**
 * An error as at most two lines: what is wrong, then the fix, where it has none of its own that of its code (`usageFix`
 * for a usage error, since only the caller knows the command). `-v` adds the stack and Python's frames.
 */
export function describeError(error: unknown, verbosity: number, colour = false, usageFix?: string): string {
  const known = isRcmBridgeError(error) ? error : undefined;
  const code = known?.code ?? 'E_INTERNAL';
  const message = error instanceof Error ? error.message : String(error);
  const lines = [`${colour ? `\u001b[1;31m${code}\u001b[0m` : code}: ${oneLine(message)}`];
  lines.push(oneLine(known?.hint || (code === 'E_USAGE' && usageFix) || errorCodes[code].fix));
  if (verbosity > 0 && error instanceof Error && error.stack) lines.push(error.stack);
  return lines.join('\n');
}

const oneLine = (text: string): string => text.replace(/\s*\n\s*/g, ' ').trim();

/** A reader that stops reading (`| head`) is no error. */
export function endQuietlyOnClosedPipe(): void {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') process.exit(process.exitCode ?? 0);
      throw error;
    });
  }
}
