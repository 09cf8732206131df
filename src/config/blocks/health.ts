import { z } from 'zod';
import { count, key, share, word } from './key.ts';

const nonFinite = z.strictObject({
  policy: key(z.enum(['skip', 'fail']).default('skip'), 'What a non-finite update does', 'mayChange'),
  maxShare: key(share.default(0.01), 'Share of skipped updates in the window that fails the run', 'mayChange'),
  windowSteps: key(count.default(200), 'Length of the window', 'mayChange'),
});

export const health = z.strictObject({
  nonFinite: key(nonFinite.prefault({}), 'NaN and infinity in losses and gradients'),
  teacherCheck: key(
    z.boolean().default(true),
    'Look at the teacher, and at the derivative that training uses, before the first step',
    'mayChange',
  ),
  reference: key(word.nullable().default(null), 'Curves of a healthy run to compare with', 'mayChange'),
  checksumEverySteps: key(
    count.nullable().default(null),
    'Steps between checksums of the frozen teacher and of replicas; null: none',
    'mayChange',
  ),
  onAlarm: key(z.enum(['warn', 'pause', 'fail']).default('warn'), 'What an alarm does', 'mayChange'),
});
