/** What differs between the config a run began with and another one, and whether the run may take it over. */
import { isDeepStrictEqual } from 'node:util';
import { resolvedJsonSchema, type SchemaNode, schemaAt } from './json-schema.ts';
import { isDocument } from './layers.ts';
import type { RcmConfig } from './types.ts';

/** A value that differs; a list counts as one value. */
export interface ConfigChange {
  /** Such as `schedule.steps`. */
  readonly path: string;
  readonly before: unknown;
  readonly after: unknown;
  /** The schema's `x-mayChangeOnResume`. */
  readonly mayChange: boolean;
}

export function configChanges(before: RcmConfig, after: RcmConfig): readonly ConfigChange[] {
  const schema = resolvedJsonSchema();
  const found: ConfigChange[] = [];
  const visit = (old: unknown, now: unknown, path: readonly string[]): void => {
    if (isDocument(old) && isDocument(now)) {
      for (const key of new Set([...Object.keys(old), ...Object.keys(now)])) visit(old[key], now[key], [...path, key]);
    } else if (!isDeepStrictEqual(old, now)) {
      const node = schemaAt(schema, path, after) as (SchemaNode & { 'x-mayChangeOnResume'?: boolean }) | undefined;
      found.push({
        path: path.join('.'),
        before: old,
        after: now,
        mayChange: node?.['x-mayChangeOnResume'] === true,
      });
    }
  };
  visit(before, after, []);
  return found;
}
