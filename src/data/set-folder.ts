/** What lies in the folder of a set: py/rcm_sidecar/data/set_writer.py writes it. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** Samples that are whole, of shards that are not; text states. Gone when the set is complete. */
export const partsIn = (folder: string): string => join(folder, '.parts');

/** Whether somebody began the set and nobody has finished it. */
export const isUnfinished = (folder: string): boolean => existsSync(partsIn(folder));

export const shardsIn = (folder: string): number => pathsIn(folder, '.tar').length;

/** Bytes of what a set has already, without the text states that are kept while it is made. */
export function bytesIn(folder: string): number {
  const files = [...pathsIn(folder, '.tar'), ...pathsIn(partsIn(folder), '.part')];
  return files.reduce((sum, path) => sum + (statSync(path, { throwIfNoEntry: false })?.size ?? 0), 0);
}

function pathsIn(folder: string, ending: string): readonly string[] {
  try {
    return readdirSync(folder)
      .filter(name => name.endsWith(ending))
      .map(name => join(folder, name));
  } catch {
    return [];
  }
}
