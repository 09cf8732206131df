// docs/paper-constants.md: what the paper and its public code set, and what the presets set, with the reason of each
// difference. The last column of numbers comes from the presets: `npm run generate` writes the page.

/**
 * A constant of a table.
 *
 * @typedef {object} Row
 * @property {string} name
 * @property {string} key of the config
 * @property {unknown} code the public code's value; undefined: it has none
 * @property {string} [codeText] the same in words, where the value alone says too little
 * @property {string} [paper] what the paper says; undefined: nothing that our notes record
 * @property {string} [why] the reason where `here` differs from `code`
 */

const shared = [
  { name: 'AdamW betas', key: 'student.optimizer.betas', code: [0, 0.999] },
  { name: 'AdamW epsilon', key: 'student.optimizer.epsilon', code: 1e-8 },
  { name: 'weight decay', key: 'student.optimizer.weightDecay', code: 0.01 },
  { name: 'critic betas', key: 'critic.optimizer.betas', code: [0, 0.999] },
  { name: 'critic weight decay', key: 'critic.optimizer.weightDecay', code: 0.01 },
  { name: 'learning rate, warm-up', key: 'student.optimizer.warmupUpdates', code: 100, codeText: '100 own updates' },
  { name: 'learning rate, after it', key: 'student.optimizer.schedule', code: 'constant' },
  { name: 'gradient clipping', key: 'student.optimizer.clipNorm', code: null, codeText: 'off (a norm of 1e12)' },
  {
    name: 'non-finite gradients',
    key: 'health.nonFinite.policy',
    code: undefined,
    codeText: 'set to zero, not counted',
    why: 'A zeroed sample hides a fault: here the update is skipped, named and counted, and too many end the run.',
  },
  { name: 'weight of sCM', key: 'losses.scm.weight', code: 100, paper: '1' },
  { name: 'weight of DMD', key: 'losses.dmd.weight', code: 1, paper: '0.01' },
  {
    name: 'tangent warm-up, form',
    key: 'losses.scm.warmup',
    code: 'publicSnapshot',
    codeText: 'scales half of the second term',
    why: 'An exact student should have zero loss at every r; the public form leaves (1 - r) cos sin x (sections 4 and 10.13). `publicSnapshot` reproduces it.',
  },
  { name: 'tangent normalisation', key: 'losses.scm.tangentNormOffset', code: 0.1, codeText: 'g / (norm + 0.1)' },
  {
    name: 'time derivative',
    key: 'losses.scm.timeDerivative',
    code: 'exact',
    codeText: 'exact JVP',
    paper: 'exact JVP with time in fp32, or a difference in t only',
  },
  { name: 'time embedding', key: 'compute.precision.time', code: 'fp32', paper: 'fp32' },
  { name: 'products', key: 'compute.precision.compute', code: 'bf16' },
  { name: 'gradient reduction', key: 'compute.precision.reduce', code: 'fp32' },
  { name: 'average of the weights', key: 'compute.precision.ema', code: 'fp32' },
  { name: 'rollout, longest', key: 'losses.dmd.rolloutSteps', code: 4 },
  { name: 'rollout, times', key: 'losses.dmd.rolloutTimes', code: 'random', codeText: 'falling draws from p_D' },
  { name: 'critic head start', key: 'losses.dmd.criticHeadStartSteps', code: 0 },
  { name: 'EMA, relative width', key: 'student.ema', code: [{ kind: 'power', relativeWidth: 0.1 }] },
  { name: 'dCM grid', key: 'losses.dcm.gridSteps', code: 48 },
  { name: 'dCM grid, shift', key: 'losses.dcm.shift', code: 5 },
  { name: 'dCM teacher steps', key: 'losses.dcm.teacherSteps', code: 1 },
  { name: 'seed', key: 'seed', code: 0 },
];

const wanShared = [
  { name: 'height', key: 'model.height', code: 480, paper: '480p' },
  { name: 'width', key: 'model.width', code: 832 },
  { name: 'teacher guidance', key: 'teacher.guidance', code: 5 },
  {
    name: 'p_D: rollout, DMD, critic',
    key: 'losses.dmd.timeDistribution',
    code: { kind: 'uniformShifted', shift: 5 },
    codeText: 'uniform, shifted by 5',
  },
  { name: 'sampler, later times', key: 'student.sampler.times', code: [1.5, 1.4, 1] },
  { name: 'steps in all', key: 'schedule.steps', code: 100_000 },
  { name: 'metrics every', key: 'logging.everySteps', code: 50 },
  { name: 'data workers', key: 'data.workers', code: 8 },
  { name: 'shuffle buffer', key: 'data.shuffleBuffer', code: 1000 },
  {
    name: 'checkpoints kept',
    key: 'checkpoints.keepLast',
    code: undefined,
    codeText: 'all, for ever',
    why: 'Full checkpoints of one month would fill a disk; the last three stay, and every 10,000th.',
  },
];

const wan13 = [
  { name: 'frames', key: 'model.frames', code: 77, paper: '5 seconds' },
  { name: 'student learning rate', key: 'student.optimizer.learningRate', code: 2e-6 },
  { name: 'critic learning rate', key: 'critic.optimizer.learningRate', code: 4e-7 },
  { name: 'batch', key: 'schedule.batchSize', code: 8, codeText: '1 a GPU, 8 GPUs' },
  { name: 'GPUs that share the weights', key: 'compute.parallel.shard', code: 4 },
  { name: 'GPUs that share a sample', key: 'compute.parallel.context', code: 1 },
  { name: 'checkpointing', key: 'compute.activationCheckpointing', code: 'block' },
  {
    name: 'p_G: student times',
    key: 'losses.scm.timeDistribution',
    code: { kind: 'logNormalSigma', mean: 0.7, std: 1.6 },
    codeText: 'log sigma ~ N(0.7, 1.6)',
  },
  { name: 'student updated every', key: 'schedule.studentEvery', code: 5 },
  { name: 'tangent warm-up', key: 'losses.scm.tangentWarmupUpdates', code: 1000, codeText: '1000 updates, sCM alone' },
  { name: 'sampler, sigma_max', key: 'student.sampler.sigmaMax', code: 80 },
  { name: 'checkpoint every', key: 'checkpoints.everySteps', code: 500 },
  { name: 'previews every', key: 'evaluation.previews.everySteps', code: 500 },
];

const wan14 = [
  { name: 'frames', key: 'model.frames', code: 81, paper: '5 seconds' },
  { name: 'student learning rate', key: 'student.optimizer.learningRate', code: 1e-6 },
  { name: 'critic learning rate', key: 'critic.optimizer.learningRate', code: 1e-7 },
  { name: 'batch', key: 'schedule.batchSize', code: 4, codeText: '1 for each 8 of 32 GPUs' },
  {
    name: 'GPUs that share the weights',
    key: 'compute.parallel.shard',
    code: 32,
    why: 'The same 32: here weights are spread over shard x context GPUs, 4 x 8.',
  },
  { name: 'GPUs that share a sample', key: 'compute.parallel.context', code: 8 },
  {
    name: 'checkpointing',
    key: 'compute.activationCheckpointing',
    code: 'mm_only',
    codeText: 'results of products kept',
    why: 'The same, and attention is kept as well: it costs two activations a block and saves the dearest part of the recomputation.',
  },
  {
    name: 'p_G: student times',
    key: 'losses.scm.timeDistribution',
    code: { kind: 'logNormalSigma', mean: 1.5, std: 1.6 },
    codeText: 'log sigma ~ N(1.5, 1.6)',
  },
  { name: 'student updated every', key: 'schedule.studentEvery', code: 10 },
  { name: 'tangent warm-up', key: 'losses.scm.tangentWarmupUpdates', code: 0 },
  {
    name: 'sampler, sigma_max',
    key: 'student.sampler.sigmaMax',
    code: 200,
    codeText: '200, in previews while training only',
    why: 'No loss reads it. The public sampler takes 80, and previews should show what people will get.',
  },
  { name: 'checkpoint every', key: 'checkpoints.everySteps', code: 250 },
  { name: 'previews every', key: 'evaluation.previews.everySteps', code: 250 },
];

const recommended = 'Recommended in section 9; the paper does not publish its file.';
const cosmos = [
  { name: 'frames', key: 'model.frames', code: 1 },
  { name: 'height', key: 'model.height', code: undefined, why: 'The 16:9 size of the published weights.' },
  { name: 'width', key: 'model.width', code: undefined, why: 'The 16:9 size of the published weights.' },
  { name: 'student learning rate', key: 'student.optimizer.learningRate', code: undefined, why: recommended },
  { name: 'critic learning rate', key: 'critic.optimizer.learningRate', code: undefined, why: recommended },
  { name: 'batch', key: 'schedule.batchSize', code: undefined, why: `8 a GPU. ${recommended}` },
  { name: 'GPUs that share the weights', key: 'compute.parallel.shard', code: undefined, why: recommended },
  { name: 'checkpointing', key: 'compute.activationCheckpointing', code: undefined, why: recommended },
  {
    name: 'p_G: student times',
    key: 'losses.scm.timeDistribution',
    code: { kind: 'logNormalSigma', mean: -0.8, std: 1.6 },
    codeText: 'log sigma ~ N(-0.8, 1.6)',
  },
  {
    name: 'p_D: rollout, DMD, critic',
    key: 'losses.dmd.timeDistribution',
    code: { kind: 'logNormalSigma', mean: 0, std: 1.6 },
    codeText: 'log sigma ~ N(0, 1.6)',
  },
  { name: 'student updated every', key: 'schedule.studentEvery', code: 5 },
  {
    name: 'tangent warm-up',
    key: 'losses.scm.tangentWarmupUpdates',
    code: 0,
    why: "Section 9 recommends Wan 1.3B's value.",
  },
  {
    name: 'teacher guidance',
    key: 'teacher.guidance',
    code: 5,
    codeText: "5 (4 in NVIDIA's cond + g (cond - uncond))",
  },
  { name: 'sampler, sigma_max', key: 'student.sampler.sigmaMax', code: 80 },
  {
    name: 'sampler, later times',
    key: 'student.sampler.times',
    code: [1.5, 1.4, 1],
    why: 'Recommended in cosmos-predict2.md: the times of the earlier public sampler, sigma 3.6, 1.56 and 0.68.',
  },
  { name: 'steps in all', key: 'schedule.steps', code: undefined, why: recommended },
  { name: 'checkpoint every', key: 'checkpoints.everySteps', code: undefined, why: recommended },
];

const tables = [
  { title: 'All presets', preset: 'wan2.1-t2v-1.3b-480p-rcm', rows: shared, also: ['wan2.1-t2v-14b-480p-rcm', 'cosmos-predict2-t2i-2b-rcm'] },
  { title: 'Wan2.1, both sizes', preset: 'wan2.1-t2v-1.3b-480p-rcm', rows: wanShared, also: ['wan2.1-t2v-14b-480p-rcm'] },
  { title: 'Wan2.1 T2V 1.3B', preset: 'wan2.1-t2v-1.3b-480p-rcm', rows: wan13, also: [] },
  { title: 'Wan2.1 T2V 14B', preset: 'wan2.1-t2v-14b-480p-rcm', rows: wan14, also: [] },
  { title: 'Cosmos-Predict2 text to image', preset: 'cosmos-predict2-t2i-2b-rcm', rows: cosmos, also: [] },
];

const same = (left, right) => JSON.stringify(sorted(left)) === JSON.stringify(sorted(right));
const sorted = value =>
  value !== null && typeof value === 'object' && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value;

const valueAt = (config, key) => key.split('.').reduce((value, part) => value?.[part], config);

/** A value as in a table: numbers as people write them, lists without brackets. */
function shown(value) {
  if (value === undefined) return '';
  if (value === null) return 'none';
  if (Array.isArray(value)) return value.map(shown).join(', ');
  if (typeof value === 'object') {
    const { kind, ...rest } = value;
    return `${kind}${Object.entries(rest).map(([key, inner]) => `, ${key} ${shown(inner)}`).join('')}`;
  }
  if (typeof value !== 'number') return String(value);
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential();
  return value >= 10_000 ? value.toLocaleString('en') : String(value);
}

/** @param {Row} row */
function line(row, config) {
  const here = valueAt(config, row.key);
  if (here === undefined) throw new Error(`No preset has ${row.key}.`);
  const differs = !same(here, row.code);
  if (differs && !row.why) throw new Error(`${row.key} is ${shown(here)}, public code has ${shown(row.code)}: say why.`);
  if (!differs && row.why) throw new Error(`${row.key} does not differ from public code, but has a reason.`);
  const cells = [row.name, `\`${row.key}\``, row.paper ?? '', row.codeText ?? shown(row.code), shown(here), row.why ?? ''];
  return `| ${cells.join(' | ')} |`;
}

function table({ title, preset, rows, also }, configs) {
  for (const other of also) {
    const differs = rows.find(({ key }) => !same(valueAt(configs[preset], key), valueAt(configs[other], key)));
    if (differs) throw new Error(`${other} differs from ${preset} in ${differs.key}: give it a row of its own.`);
  }
  return [
    `## ${title}`,
    '',
    '| constant | key | paper | public code | here | why it differs |',
    '| --- | --- | --- | --- | --- | --- |',
    ...rows.map(row => line(row, configs[preset])),
  ].join('\n');
}

function networks(configs) {
  const name = preset => preset.replace(/-rcm$/, '');
  const rows = Object.keys(configs)
    .filter(preset => preset.endsWith('-rcm') && preset !== 'digits-rcm')
    .map(preset => {
      const { model, compute, schedule } = configs[preset];
      const { shard, context } = compute.parallel;
      const gpus = compute.gpusPerNode * compute.nodes;
      return `| ${name(preset)} | ${model.frames} x ${model.height} x ${model.width} | ${gpus} | ${gpus / shard / context} x ${shard} x ${context} | ${schedule.batchSize} |`;
    });
  return [
    '## Networks and GPUs',
    '',
    '| presets | frames x height x width | GPUs | replicate x shard x context | batch |',
    '| --- | --- | --- | --- | --- |',
    ...rows,
  ].join('\n');
}

function ablations(configs) {
  const rows = Object.entries(configs)
    .filter(([preset]) => preset !== 'digits-rcm')
    .map(([preset, { method, schedule, losses }]) => {
      const critic = method === 'rcm' || method === 'dmd';
      const warmup = method === 'rcm' ? losses.scm.tangentWarmupUpdates : 0;
      const students = critic ? warmup + Math.ceil((schedule.steps - warmup) / schedule.studentEvery) : schedule.steps;
      const updates = [students, schedule.steps - students].map(count => count.toLocaleString('en'));
      return `| ${preset} | ${schedule.steps.toLocaleString('en')} | ${updates.join(' | ')} |`;
    });
  return [
    '## Steps of the four methods',
    '',
    'The methods of one network differ in `method` and `schedule.steps` only: as many student updates each.',
    '',
    '| preset | steps | student updates | critic updates |',
    '| --- | --- | --- | --- |',
    ...rows,
  ].join('\n');
}

/**
 * The page.
 *
 * @param {Readonly<Record<string, any>>} configs resolved presets by name
 */
export function render(configs) {
  return `# The paper's constants

Where each constant of the presets comes from. Paper: "Large Scale Diffusion Distillation via Score-Regularized
Continuous-Time Consistency" (arXiv 2510.08431). Public code: its reference code, read for rcm-method.md; where it
publishes no run (Cosmos-Predict2), the defaults of its settings. Sections are those of rcm-method.md; its section 9 is the
source of the settings. An empty cell: that source says nothing, as far as our notes go. "Why" is empty where the preset
and the public code agree.

This page is generated from the presets by \`npm run generate\` (scripts/paper-constants.mjs).

${tables.map(one => table(one, configs)).join('\n\n')}

The 100 : 1 of the losses and the paper's 1 : 0.01 are the same: both losses are sums over a latent.

${networks(configs)}

${ablations(configs)}
`;
}
