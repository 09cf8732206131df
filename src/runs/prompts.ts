/** Prompt lists: a file with one prompt a line, or one that is shipped. */
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { nearest } from '../nearest.ts';
import { packageRoot } from '../package-root.ts';

const shippedPrefix = 'builtin:';
const ending = '.txt';
const shippedFolder = (): string => join(packageRoot(), 'py', 'rcm_sidecar', 'assets', 'prompts');

/**
 * Prompts of a list, in order; lines of nothing but space are left out.
 * @param locator a file, relative to `cwd`, or `builtin:NAME`
 * @throws E_USAGE: no such list, not readable, or without a prompt
 */
export function readPrompts(locator: string, cwd: string): readonly string[] {
  const path = locator.startsWith(shippedPrefix) ? shippedPath(locator) : resolve(cwd, locator);
  const prompts = read(path)
    .split(/\r?\n/)
    .map(line => line.trim())
    .filter(line => line !== '');
  if (prompts.length > 0) return prompts;
  throw new RcmBridgeError('E_USAGE', `${path} holds no prompts.`, { hint: 'Write one prompt a line.' });
}

function shippedPath(locator: string): string {
  const names = readdirSync(shippedFolder()).map(name => `${shippedPrefix}${name.slice(0, -ending.length)}`);
  if (names.includes(locator)) return join(shippedFolder(), `${locator.slice(shippedPrefix.length)}${ending}`);
  const close = nearest(locator, names);
  throw new RcmBridgeError('E_USAGE', `There are no prompts ${locator}.`, {
    hint: close ? `Did you mean ${close}?` : `Shipped are ${names.join(' and ')}.`,
  });
}

function read(path: string): string {
  try {
    // A byte order mark is no part of the first prompt.
    return readFileSync(path, 'utf8').replace(/^\uFEFF/, '');
  } catch (error) {
    throw new RcmBridgeError('E_USAGE', `The prompts ${path} cannot be read: ${(error as Error).message}.`, {
      hint: 'Name a text file with one prompt a line, or builtin:video-8 or builtin:image-8.',
    });
  }
}
