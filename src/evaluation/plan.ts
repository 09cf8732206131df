/** What the sidecar is to evaluate, derived from the config. */
import type { RcmConfig } from '../config/types.ts';
import type { EvaluationPlan } from '../protocol/messages.ts';

type Row = EvaluationPlan['rows'][number];

/** k of precision, recall, density and coverage. */
const neighbours = 5;
/** Resamples of a 95 % interval. */
const bootstrapResamples = 200;
const smokeSamples = 8;

/** Images of the data set are measured like samples; latents without a decoder are no images. */
const imageRows = ({ data }: RcmConfig): readonly Row[] =>
  data.kind === 'latentShards'
    ? []
    : [
        { sampler: 'train', steps: null, guidance: null },
        { sampler: 'heldOut', steps: null, guidance: null },
      ];

/** Rows of a distillation: images, the teacher at `teacherSteps`, the student at `steps`. */
export function distillationPlan(config: RcmConfig): EvaluationPlan {
  const { evaluation } = config;
  const student = evaluation.steps.map((steps): Row => ({ sampler: 'student', steps, guidance: null }));
  return planOf(config, [...imageRows(config), ...teacherRows(config), ...student], evaluation.steps);
}

/** Rows of a pretraining: images, the new teacher at `teacherSteps`, and at all its steps without guidance. */
export function pretrainingPlan(config: RcmConfig): EvaluationPlan {
  const unguided: Row = { sampler: 'teacher', steps: config.teacher.sampler.steps, guidance: 1 };
  const rows = [...imageRows(config), ...teacherRows(config), ...(config.teacher.guidance === 1 ? [] : [unguided])];
  return planOf(config, rows, [config.teacher.sampler.steps]);
}

/** The same path in seconds: 8 samples, one row of each kind. */
export function smokePlan(plan: EvaluationPlan): EvaluationPlan {
  const first = (sampler: Row['sampler']): readonly Row[] =>
    plan.rows.filter(row => row.sampler === sampler).slice(0, 1);
  const rows = [...first('train'), ...first('heldOut'), ...first('teacher'), ...first('student')];
  return { ...plan, rows, samples: smokeSamples, previewSteps: plan.previewSteps.slice(0, 1) };
}

function teacherRows(config: RcmConfig): readonly Row[] {
  const { guidance } = config.teacher;
  return config.evaluation.teacherSteps.map(steps => ({ sampler: 'teacher', steps, guidance }));
}

function planOf(config: RcmConfig, rows: readonly Row[], previewSteps: readonly number[]): EvaluationPlan {
  const { samples, seed, network, features, metrics } = config.evaluation;
  return {
    rows: [...rows],
    samples,
    seed,
    network,
    features,
    metrics: [...metrics],
    neighbours,
    bootstrapResamples,
    previewSteps: [...previewSteps],
  };
}
