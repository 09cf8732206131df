import { z } from 'zod';
import { count, key } from './key.ts';

export const checkpoints = z.strictObject({
  everySteps: key(count.nullable().default(350), 'Steps between checkpoints; null: at the end only', 'mayChange'),
  keepLast: key(count.default(3), 'How many of the last checkpoints stay', 'mayChange'),
  keepEverySteps: key(count.nullable().default(null), 'Checkpoints at multiples of this stay for good', 'mayChange'),
  async: key(z.boolean().default(true), 'Write checkpoints while training goes on', 'mayChange'),
  onStop: key(z.boolean().default(true), 'Write one on Ctrl-C, cancel, SIGTERM and at the end', 'mayChange'),
  export: key(
    z.array(z.enum(['official', 'diffusers', 'comfyui'])).default(['official', 'diffusers']),
    'Layouts that export/ gets when the run ends',
    'mayChange',
  ),
});
