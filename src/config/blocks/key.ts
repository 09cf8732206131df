import { z } from 'zod';

/** Whether `resume --set` may give the key another value; shown in the schema as `x-mayChangeOnResume`. */
export type OnResume = 'fixed' | 'mayChange';

/** Describes one key of the config: a line for people, and whether it may change on resume. */
export const key = <T extends z.ZodType>(schema: T, description: string, onResume: OnResume = 'fixed'): T =>
  schema.meta({ description, 'x-mayChangeOnResume': onResume === 'mayChange' });

// Ranges that several keys share. py/rcm_sidecar/config.py mirrors each by name.
export const count = z.int().min(1);
export const countOrZero = z.int().min(0);
export const positive = z.number().gt(0);
export const notNegative = z.number().min(0);
/** From 0 to 1, both included. */
export const share = z.number().min(0).max(1);
/** From 0 up to, but not including, 1. */
export const decay = z.number().min(0).lt(1);
export const word = z.string().min(1);
