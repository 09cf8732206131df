import type { Path } from './layers.ts';

/** A value that is right by itself but does not fit another. */
export interface Conflict {
  readonly path: Path;
  readonly text: string;
  readonly hint: string;
  /** Default E_CONFIG_VALUE. */
  readonly code?: 'E_NETWORK_OVERRIDE' | 'E_NETWORK_SIZE';
}

/** `text` goes on after the path: "is 3, which ...". */
export const conflict = (path: string, text: string, hint: string): Conflict => ({
  path: path.split('.'),
  text: `${path} ${text}.`,
  hint,
});
