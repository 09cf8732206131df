import { z } from 'zod';
import { networkNames } from '../../models/registry.ts';
import { count, key, positive, word } from './key.ts';

const size = (description: string) => key(count.nullish(), `${description}; null removes an inherited override`);

const overrides = z.strictObject({
  dim: size('Model width'),
  numHeads: size('Attention heads'),
  numLayers: size('Blocks'),
  ffnDim: size('Hidden width of the feed-forward layers'),
  textDim: size('Width of the text states'),
  textLen: size('Rows of the text states'),
  freqDim: size('Width of the time features, even'),
  mlpRatio: key(positive.nullish(), 'Hidden width of the feed-forward layers over dim'),
  adalnLoraDim: size("Width of the modulation's bottleneck"),
  inDim: size('Latent channels in'),
  outDim: size('Latent channels out'),
  patchSize: key(z.array(count).length(3).nullish(), 'Latent frames, rows and columns a token covers'),
  ropeRatios: key(
    z.array(positive).length(3).nullish(),
    'Extrapolation of the rotary positions along frames, rows and columns',
  ),
  eps: key(positive.nullish(), 'Epsilon of all norms'),
});

export const digitsOverrides = {
  dim: 64,
  numHeads: 2,
  numLayers: 3,
  ffnDim: 192,
  textDim: 64,
  freqDim: 64,
  inDim: 1,
  outDim: 1,
} as const;

export const model = z.strictObject({
  name: key(
    z.enum(networkNames).default('wan2.1-tiny'),
    'Registry name: one architecture for student, teacher and critic',
  ),
  path: key(word.nullable().default(null), 'The model folder as downloaded: network, VAE, text encoder, tokenizer'),
  overrides: key(overrides.prefault({}), 'Sizes that differ from those of the named network'),
  frames: key(count.default(1), 'Frames in pixels; latent sizes are derived'),
  height: key(count.default(8), 'Height in pixels'),
  width: key(count.default(8), 'Width in pixels'),
  vae: key(word.nullable().default(null), 'auto: from model.path; null: the network works on pixels'),
  textEncoder: key(
    z.enum(['labels', 'umt5-xxl', 't5-11b', 'auto']).default('labels'),
    'labels: a learned table of a few rows for each class, kept beside the network; auto: from model.path',
  ),
});
