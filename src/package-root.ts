import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * Absolute path of the installed package: the folder that holds package.json, py/, configs/ and schema/.
 * Works from dist/ (shipped) and from src/ (tests), because both are one level below it.
 */
export function packageRoot(): string {
  return dirname(dirname(fileURLToPath(import.meta.url)));
}
