import { z } from 'zod';
import { key, word } from './key.ts';

export const notify = z.strictObject({
  webhook: key(
    word.nullable().default(null),
    'Address that gets run.json by POST on succeeded, stopped, failed and alarm; the signing key comes from RCM_BRIDGE_WEBHOOK_SECRET',
    'mayChange',
  ),
});
