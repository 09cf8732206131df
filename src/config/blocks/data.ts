import { z } from 'zod';
import { count, countOrZero, key, share, word } from './key.ts';

export const data = z.strictObject({
  kind: key(z.enum(['digits', 'latentShards', 'images', 'videos']).default('digits'), 'Kind of training data'),
  path: key(word.nullable().default(null), 'Folder of the shards (*.tar); digits are shipped with the package'),
  holdOut: key(share.default(0.2), 'Share kept for evaluation; digits: the fixed split shipped with the data'),
  cropFrames: key(z.boolean().default(true), 'Use the first model.frames frames of longer shards'),
  shuffleBuffer: key(count.default(1000), 'Most samples a process holds ready; each epoch is shuffled as a whole'),
  workers: key(countOrZero.default(8), 'Threads of a process that read samples ahead; 0 reads when a step asks'),
  maxBadSamples: key(countOrZero.default(100), 'Most damaged samples that are skipped before the run fails'),
});
