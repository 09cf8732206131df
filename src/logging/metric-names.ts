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
  epoch: 'data/epoch',
  badSamples: 'data/bad_samples',
  dataWait: 'time/data_wait_ms',
  peakMemory: 'memory/peak_gb',
  stepTime: 'time/step_ms',
  profileStep: 'profile/step_ms',
  profileSteps: 'profile/steps',
  profileOutsideNetworks: 'profile/outside_networks',
} as const;

/** The gap to the teacher in one quarter of the time axis; 0 is nearest to the data. */
export const teacherGapBucket = (bucket: 0 | 1 | 2 | 3): string => `scm/teacher_gap_bucket_${bucket}`;

/** The parts of a step's profile, with what they are called in reports; docs/profile.md says what each includes. */
export const profileParts = {
  teacher: "the teacher's passes",
  dual_forward: 'student, value and derivative',
  forward: 'other forward passes of the network that learns',
  rollout: "the student's own samples",
  critic: "the critic's forward passes",
  recomputation: 'activations computed again',
  backward: 'backward',
  communication: 'waiting for other processes',
  optimizer: 'optimizer and averages',
  inputs: 'noise, times, moving the batch',
  data_wait: 'waiting for data',
  checkpoint: 'checkpoints',
  checksum: 'checksums of weights',
  sampling: 'previews and evaluations',
  other: 'the rest',
} as const;

/** Mean milliseconds of a part in a step; its share of the step is `profile/<part>_share`. */
export const profileTime = (part: keyof typeof profileParts): string => `profile/${part}_ms`;

/** The losses that people look at first, in this order. */
export const headlineLosses: readonly string[] = [
  metricNames.scmLoss,
  metricNames.dcmLoss,
  metricNames.dmdLoss,
  metricNames.criticLoss,
  metricNames.flowLoss,
];
