import { readFile } from 'node:fs/promises';
import { extname, isAbsolute, relative } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Pair } from 'yaml';
import { isRcmBridgeError, RcmBridgeError } from '../errors/index.ts';
import { type Document, isDocument, type Layer, type Path, type Position } from './layers.ts';

export interface ReadFileOptions {
  readonly kind: 'file' | 'extends';
  readonly cwd: string;
  readonly typeCheck: boolean;
}

/** Reads a config file by its ending. Errors: E_CONFIG_NOT_FOUND, E_CONFIG_SYNTAX, E_CONFIG_TYPES, E_TYPESCRIPT_API. */
export async function readConfigFile(file: string, options: ReadFileOptions): Promise<Layer> {
  const where = shownPath(file, options.cwd);
  const ending = extname(file).toLowerCase();
  const text = await readText(file, where);
  if (ending === '.json') checkJson(text, where);
  if (['.json', '.yaml', '.yml'].includes(ending))
    return { kind: options.kind, where, ...(await readYaml(text, where)) };
  const exported = /^\.[mc]?ts$/.test(ending)
    ? await (await import('./load-typescript.ts')).loadTypeScript(file, { where, typeCheck: options.typeCheck })
    : await importJavaScript(file, where);
  return { kind: options.kind, where, document: asDocument(exported, where) };
}

/** A path as errors show it: relative where that is shorter to read. */
export function shownPath(file: string, cwd: string): string {
  const inside = relative(cwd, file);
  return inside === '' || inside.startsWith('..') || isAbsolute(inside) ? file : inside;
}

async function readText(file: string, where: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const reason =
      code === 'ENOENT' || code === 'ENOTDIR'
        ? 'there is no such file'
        : code === 'EISDIR'
          ? 'it is a folder'
          : `it cannot be read (${code})`;
    throw new RcmBridgeError('E_CONFIG_NOT_FOUND', `Config ${where}: ${reason}.`, {
      hint: 'Check the path; `rcm-bridge distill digits-rcm` runs a preset.',
      cause: error,
    });
  }
}

function asDocument(value: unknown, where: string): Document {
  if (isDocument(value)) return value;
  throw syntaxError(where, 'a config is a block of keys', 'Example: extends: digits-rcm');
}

const syntaxError = (where: string, reason: string, hint: string, cause?: unknown): RcmBridgeError =>
  new RcmBridgeError('E_CONFIG_SYNTAX', `${where}: ${reason}.`, { hint, cause });

/** YAML also reads what is no JSON; a .json file has to be JSON for everyone. */
function checkJson(text: string, where: string): void {
  try {
    JSON.parse(text);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const offset = Number(/position (\d+)/.exec(message)?.[1] ?? text.length);
    const before = text.slice(0, offset).split('\n');
    throw syntaxError(
      `${where}:${before.length}:${(before.at(-1)?.length ?? 0) + 1}`,
      `no valid JSON: ${message.split(/ in JSON| at position|, "/)[0]}`,
      'Comments and trailing commas are for YAML.',
      error,
    );
  }
}

async function readYaml(text: string, where: string): Promise<Pick<Layer, 'document' | 'locate'>> {
  const { isMap, isPair, isScalar, LineCounter, parseDocument } = await import('yaml');
  const lines = new LineCounter();
  const parsed = parseDocument(text, { lineCounter: lines, schema: 'core', merge: false });
  const problem = parsed.errors[0];
  if (problem) {
    const { line, col } = lines.linePos(problem.pos[0]);
    const reason = problem.message.split(/ at line|\n/)[0] ?? 'no valid YAML';
    throw syntaxError(
      `${where}:${line}:${col}`,
      reason,
      'Check indentation, quotes and brackets around this line.',
      problem,
    );
  }
  const locate = (path: Path, part: 'key' | 'value'): Position | undefined => {
    let node: unknown = parsed.contents;
    let pair: Pair | undefined;
    for (const key of path) {
      pair = isMap(node)
        ? node.items.find(item => isPair(item) && isScalar(item.key) && String(item.key.value) === key)
        : undefined;
      if (!pair) return undefined;
      node = pair.value;
    }
    const target = (part === 'value' ? (pair?.value ?? pair?.key) : pair?.key) as
      | { range?: readonly number[] }
      | null
      | undefined;
    const start = target?.range?.[0];
    if (start === undefined) return undefined;
    const { line, col } = lines.linePos(start);
    return { line, column: col };
  };
  return {
    document: asDocument(
      toPlain(() => parsed.toJS(), where),
      where,
    ),
    locate,
  };
}

/** `toJS` refuses aliases that grow without bound. */
function toPlain(read: () => unknown, where: string): unknown {
  try {
    return read();
  } catch (error) {
    throw syntaxError(where, error instanceof Error ? error.message : 'no valid YAML', 'Write the values out.', error);
  }
}

async function importJavaScript(file: string, where: string): Promise<unknown> {
  try {
    const module = (await import(`${pathToFileURL(file).href}?read=${Date.now()}`)) as { default?: unknown };
    return module.default;
  } catch (error) {
    if (isRcmBridgeError(error)) throw error;
    throw syntaxError(
      where,
      `it does not load: ${error instanceof Error ? error.message : String(error)}`,
      'A config exports its object as default.',
      error,
    );
  }
}
