import { z } from 'zod';
import { count, countOrZero, key, word } from './key.ts';

export const metricNames = [
  'fdTeacher',
  'fdReal',
  'precision',
  'recall',
  'density',
  'coverage',
  'accuracy',
  'nearestTrain',
] as const;

const gate = z.strictObject({
  metric: key(z.enum(metricNames), 'The metric that is judged'),
  steps: key(count, 'Sampler steps of the row that is judged'),
  atMost: key(z.number().nullable().default(null), 'Largest value that passes', 'mayChange'),
  atLeast: key(z.number().nullable().default(null), 'Smallest value that passes', 'mayChange'),
  relativeTo: key(
    z.enum(['teacher', 'train', 'heldOut']).nullable().default(null),
    "The bound is a multiple of this row's value; teacher: the row with the same number of steps",
    'mayChange',
  ),
});

const previews = z.strictObject({
  everySteps: key(count.nullable().default(350), 'Steps between preview grids; null: none', 'mayChange'),
  prompts: key(word.default('builtin:digits-10'), 'What the grids show: builtin:NAME or a file', 'mayChange'),
  seeds: key(z.array(countOrZero).default([0, 1, 2, 3]), 'One row or column for each seed', 'mayChange'),
});

export const evaluation = z.strictObject({
  everySteps: key(count.nullable().default(null), 'Steps between evaluations; null: at the end only', 'mayChange'),
  network: key(z.enum(['student', 'ema']).default('ema'), 'The network that is evaluated and exported', 'mayChange'),
  steps: key(z.array(count).default([1, 2, 4]), "Sampler steps of the student's rows", 'mayChange'),
  teacherSteps: key(
    z.array(count).default([1, 2, 4, 8, 50]),
    "Solver steps of the teacher's rows, cached by content hash",
    'mayChange',
  ),
  prompts: key(word.nullable().default(null), 'Prompts of the evaluation; null with labels', 'mayChange'),
  samples: key(count.default(1797), 'Samples of each row', 'mayChange'),
  seed: key(countOrZero.default(1000), 'Seed of the noise; all rows start from the same', 'mayChange'),
  features: key(
    word.nullable().default('builtin:digits-classifier'),
    'Feature network of the distances; null: no distances',
    'mayChange',
  ),
  metrics: key(
    z.array(z.enum(metricNames)).default([...metricNames]),
    'What is measured; calls and seconds are always there',
    'mayChange',
  ),
  benchmarks: key(z.array(z.enum(['geneval', 'vbench'])).default([]), 'Public benchmarks', 'mayChange'),
  gates: key(
    z.array(gate).default([
      { metric: 'fdTeacher', steps: 1, atMost: 0.15, atLeast: null, relativeTo: 'teacher' },
      { metric: 'fdTeacher', steps: 4, atMost: 0.65, atLeast: null, relativeTo: 'train' },
      { metric: 'recall', steps: 1, atMost: null, atLeast: 0.75, relativeTo: null },
    ]),
    'Bounds on the student; exit code 6 when one is not met',
    'mayChange',
  ),
  previews: key(previews.prefault({}), 'Sample grids while training'),
});
