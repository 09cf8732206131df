import { z } from 'zod';
import { checkpoints } from './checkpoints.ts';
import { compute } from './compute.ts';
import { critic } from './critic.ts';
import { data } from './data.ts';
import { evaluation } from './evaluation.ts';
import { health } from './health.ts';
import { countOrZero, key } from './key.ts';
import { logging } from './logging.ts';
import { losses } from './losses.ts';
import { model } from './model.ts';
import { notify } from './notify.ts';
import { pretrain } from './pretrain.ts';
import { schedule } from './schedule.ts';
import { student } from './student.ts';
import { teacher } from './teacher.ts';

/** The largest seed: what a double holds exactly, so that JSON, msgpack and Python agree. */
const seed = countOrZero.max(Number.MAX_SAFE_INTEGER);

/**
 * The authority on the config: keys, types, ranges and defaults of one file after `extends` is resolved.
 * Defaults are the values of configs/digits-rcm.yaml. py/rcm_sidecar/config.py mirrors it.
 */
export const configSchema = z.strictObject({
  version: key(z.literal(1).default(1), 'Version of this file format'),
  name: key(
    z
      .string()
      .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/)
      .default('digits-rcm'),
    'Used in the run id and in reports: letters, digits, dot, dash and underscore',
  ),
  seed: key(seed.default(0), 'Seed of everything random in training'),
  method: key(z.enum(['rcm', 'scm', 'dmd', 'dcm']).default('rcm'), 'Distillation method'),
  model: key(model.prefault({}), 'The network'),
  teacher: key(teacher.prefault({}), 'The model that is distilled'),
  student: key(student.prefault({}), 'The model that is trained'),
  critic: key(critic.prefault({}), "The network that follows the student's distribution: rcm, dmd"),
  losses: key(losses.prefault({}), 'The losses and their weights'),
  data: key(data.prefault({}), 'Training data'),
  pretrain: key(pretrain.prefault({}), 'Training of a small teacher: `rcm-bridge pretrain`'),
  schedule: key(schedule.prefault({}), 'How long and how much at a time'),
  compute: key(compute.prefault({}), 'Hardware, number formats, memory'),
  checkpoints: key(checkpoints.prefault({}), 'What is saved, and when'),
  evaluation: key(evaluation.prefault({}), 'How quality is measured'),
  health: key(health.prefault({}), 'What is watched while training'),
  logging: key(logging.prefault({}), 'Metrics and logs'),
  notify: key(notify.prefault({}), 'Who is told'),
});

export type RcmConfigOutput = z.output<typeof configSchema>;
export type RcmConfigFile = z.input<typeof configSchema>;
