import type { RunEvent } from '../runs/events.ts';
import { toJson } from '../runs/json.ts';

/** An event as one line for machines, with `"schema": 1`; numbers that are not finite are strings. */
export function eventLine(event: RunEvent): string {
  return `${toJson({ schema: 1, ...event })}\n`;
}
