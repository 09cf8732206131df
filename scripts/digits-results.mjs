// Writes docs/results/digits.md from the evaluation files in docs/results/digits/: node scripts/digits-results.mjs
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const results = join(dirname(dirname(fileURLToPath(import.meta.url))), 'docs', 'results');
export const page = join(results, 'digits.md');

const metrics = ['fdTeacher', 'fdReal', 'precision', 'recall', 'density', 'coverage', 'accuracy', 'nearestTrain'];

const digits = value => (value === null || value === undefined ? '' : value >= 10 ? value.toFixed(1) : value.toFixed(3));
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const spread = values => Math.sqrt(mean(values.map(value => (value - mean(values)) ** 2)) * (values.length / (values.length - 1)));

/** Reads seed-<n>.json, each the evaluation file of one run. */
function evaluations() {
  const folder = join(results, 'digits');
  const names = readdirSync(folder).filter(name => /^seed-\d+\.json$/.test(name)).sort();
  return names.map(name => JSON.parse(readFileSync(join(folder, name), 'utf8')));
}

const rowOf = (evaluation, sampler, steps) => evaluation.rows.find(row => row.sampler === sampler && row.steps === steps);
const valueOf = (evaluation, sampler, steps, metric) => rowOf(evaluation, sampler, steps)?.metrics[metric]?.value ?? null;

function tableRow(all, sampler, steps, label) {
  const cells = metrics.map(metric => {
    const values = all.map(one => valueOf(one, sampler, steps, metric)).filter(value => value !== null);
    if (values.length === 0) return '';
    return sampler === 'student' ? `${digits(mean(values))} ± ${digits(spread(values))}` : digits(values[0]);
  });
  const { calls, n } = rowOf(all[0], sampler, steps);
  return `| ${[label, calls ?? '', n, ...cells].join(' | ')} |`;
}

function targets(all) {
  const reference = valueOf(all[0], 'train', null, 'fdTeacher');
  const ofStudent = (steps, metric) => mean(all.map(one => valueOf(one, 'student', steps, metric)));
  const own = valueOf(all[0], 'teacher', 1, 'fdTeacher');
  const share = steps => ofStudent(steps, 'fdTeacher') / reference;
  const lines = [
    ['fdTeacher at 1 step, in D', share(1), 'at most 0.35', share(1) <= 0.35],
    ['fdTeacher at 4 steps, in D', share(4), 'at most 0.55', share(4) <= 0.55],
    ["fdTeacher at 1 step, in the teacher's own single step", ofStudent(1, 'fdTeacher') / own, 'at most 0.12', ofStudent(1, 'fdTeacher') / own <= 0.12],
    ['recall at 1 step', ofStudent(1, 'recall'), 'at least 0.80', ofStudent(1, 'recall') >= 0.8],
    ['recall at 4 steps', ofStudent(4, 'recall'), `at least ${digits(valueOf(all[0], 'teacher', 50, 'recall') - 0.03)} (the teacher's - 0.03)`, ofStudent(4, 'recall') >= valueOf(all[0], 'teacher', 50, 'recall') - 0.03],
    ['accuracy, least of 1, 2 and 4 steps', Math.min(...[1, 2, 4].map(steps => ofStudent(steps, 'accuracy'))), 'at least 0.98', [1, 2, 4].every(steps => ofStudent(steps, 'accuracy') >= 0.98)],
  ];
  return lines.map(([name, value, limit, met]) => `| ${name} | ${digits(value)} | ${limit} | ${met ? 'met' : 'missed'} |`);
}

/** The page as Markdown. */
export function render() {
  const all = evaluations();
  const { floors, featureDimension, rows } = all[0];
  const teacherSteps = rows.filter(row => row.sampler === 'teacher').map(row => row.steps);
  const machine = readFileSync(join(results, 'digits', 'machine.md'), 'utf8').trim();
  return `# The digits student

Made by \`node scripts/digits-results.mjs\` from the evaluation files in [digits/](digits/), one for each of ${all.length} seeds of

    make distill ARGS="--set seed=N"

with the shipped settings. ${machine}

Distances are Frechet distances on ${featureDimension} features of the shipped classifier. \`fdTeacher\` is the distance to a fresh set of the
teacher's own 50-step samples, \`fdReal\` to the held-out images. Floors: training to held-out images ${digits(floors.realReal)}, one
teacher set to another ${digits(floors.teacherTeacher)}. D = ${digits(valueOf(all[0], 'train', null, 'fdTeacher'))} is the distance of the training images to the teacher's set. Distances depend
on n, which stands in the table. Students: mean ± standard deviation over the seeds.

| row | calls | n | ${metrics.join(' | ')} |
|---|---|---|${metrics.map(() => '---|').join('')}
${[
  tableRow(all, 'train', null, 'training images'),
  tableRow(all, 'heldOut', null, 'held-out images'),
  ...teacherSteps.map(steps => tableRow(all, 'teacher', steps, `teacher, ${steps} steps`)),
  ...[1, 2, 4].map(steps => tableRow(all, 'student', steps, `student, ${steps} steps`)),
].join('\n')}

## Targets

| what, mean of the seeds | measured | target | |
|---|---|---|---|
${targets(all).join('\n')}

The teacher, its own scores and the commands that made it:
[assets/digits/README.md](../../py/rcm_sidecar/assets/digits/README.md).
`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(page, render());
