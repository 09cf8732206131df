import { z } from 'zod';
import { count, countOrZero, key, share, word } from './key.ts';

export const data = z.strictObject({
  kind: key(z.enum(['digits', 'latentShards', 'images', 'videos']).default('digits'), 'Kind of training data'),
  path: key(word.nullable().default(null), 'Folder of the data; digits are shipped with the package'),
  holdOut: key(share.default(0.2), 'Share kept for evaluation; digits: the fixed split shipped with the data'),
  cropFrames: key(z.boolean().default(true), 'Use the first model.frames frames of longer shards'),
  shuffleBuffer: key(count.default(1000), 'Samples that are shuffled at a time'),
  workers: key(countOrZero.default(8), 'Processes that read data'),
  maxBadSamples: key(countOrZero.default(100), 'Damaged samples that are skipped before the run fails'),
});
