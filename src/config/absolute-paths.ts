import { resolve } from 'node:path';
import type { RcmConfigOutput } from './blocks/index.ts';

/** Words that are no path where a locator may stand; `null` never is. */
const isLocator = (value: string): boolean => /^(builtin|hf|text):/.test(value);

const absolute = <T extends string | null>(value: T, cwd: string, words: readonly string[] = []): T =>
  (value === null || isLocator(value) || words.includes(value) ? value : resolve(cwd, value)) as T;

/** The config with every path absolute; relative ones belong to `cwd`. */
export function withAbsolutePaths(config: RcmConfigOutput, cwd: string): RcmConfigOutput {
  const { critic, data, evaluation, health, model, student, teacher } = config;
  const negativeWords = ['empty', 'zeros', 'default'];
  return {
    ...config,
    model: { ...model, path: absolute(model.path, cwd), vae: absolute(model.vae, cwd, ['auto']) },
    teacher: {
      ...teacher,
      weights: absolute(teacher.weights, cwd, ['model']),
      negative: absolute(teacher.negative, cwd, negativeWords),
    },
    student: { ...student, init: absolute(student.init, cwd, ['teacher']) },
    critic: { ...critic, init: absolute(critic.init, cwd, ['teacher']) },
    data: { ...data, path: absolute(data.path, cwd) },
    evaluation: {
      ...evaluation,
      prompts: absolute(evaluation.prompts, cwd),
      features: absolute(evaluation.features, cwd),
      previews: { ...evaluation.previews, prompts: absolute(evaluation.previews.prompts, cwd) },
    },
    health: { ...health, reference: absolute(health.reference, cwd) },
  };
}
