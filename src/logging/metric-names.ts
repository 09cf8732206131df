/** Names of the training metrics in metrics.ndjson; the report and the progress line look for these. */
export const metricNames = {
  scmLoss: 'scm/loss',
  dcmLoss: 'dcm/loss',
  dmdLoss: 'dmd/loss',
  criticLoss: 'critic/loss',
  flowLoss: 'flow/loss',
  gNorm: 'scm/g_norm',
  jvpNorm: 'scm/jvp_norm',
  teacherGap: 'scm/teacher_gap',
  gradientScm: 'grad_norm/scm',
  gradientDcm: 'grad_norm/dcm',
  gradientDmd: 'grad_norm/dmd',
  gradientStudent: 'grad_norm/student',
  gradientCritic: 'grad_norm/critic',
  learningRateStudent: 'lr/student',
  learningRateCritic: 'lr/critic',
  stepTime: 'time/step_ms',
} as const;

/** The gap to the teacher in one quarter of the time axis; 0 is nearest to the data. */
export const teacherGapBucket = (bucket: 0 | 1 | 2 | 3): string => `scm/teacher_gap_bucket_${bucket}`;

/** The losses that people look at first, in this order. */
export const headlineLosses: readonly string[] = [
  metricNames.scmLoss,
  metricNames.dcmLoss,
  metricNames.dmdLoss,
  metricNames.criticLoss,
  metricNames.flowLoss,
];
