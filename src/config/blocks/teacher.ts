import { z } from 'zod';
import { count, key, notNegative, positive, word } from './key.ts';

const sampler = z.strictObject({
  kind: key(z.enum(['euler', 'unipc']).default('euler'), 'Solver of the teacher'),
  steps: key(count.default(50), 'Solver steps of the reference row'),
  shift: key(positive.default(1), 'Time shift of the solver; 1 is none'),
});

export const teacher = z.strictObject({
  weights: key(
    word.default('builtin:digits-teacher'),
    'A path, builtin:NAME, hf:OWNER/NAME@REVISION, or model: the network in model.path',
  ),
  guidance: key(notNegative.default(1.5), 'v = v_neg + guidance * (v_pos - v_neg); 1 makes no negative call'),
  branches: key(z.enum(['auto', 'batched', 'sequential']).default('auto'), 'How the two guidance passes run'),
  negative: key(word.default('empty'), "empty, zeros, default (the model's own negative prompt), text:... or a file"),
  sampler: key(sampler.prefault({}), "The teacher's own sampler: the reference row of every table"),
});
