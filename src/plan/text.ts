/** A plan in words: one line, and a table. */
import type { Memory } from './memory.ts';
import type { Plan } from './plan.ts';
import type { StepTime } from './time.ts';

type Facts = Omit<Plan, 'summary' | 'text'>;

/** `plan  1 x NVIDIA H200: 47.2 of 150 GB a GPU; student 8.1 s, critic 3.4 s a step; 92 hours (92 GPU-hours)`. */
export function summaryOf(plan: Facts): string {
  const { machine, memory, time } = plan;
  if (!machine || !memory || !time) return `plan  ${plan.name}: no GPU is planned for`;
  const need = `${gigabytes(memory.needed)} of ${gigabytes(machine.memoryBytes)} GB a GPU${plan.fits ? '' : ', does not fit'}`;
  const steps = [
    `student ${seconds(time.student.total)}`,
    ...(time.critic ? [`critic ${seconds(time.critic.total)}`] : []),
  ];
  return `plan  ${where(plan)}: ${need}; ${steps.join(', ')} a step; ${duration(time.hours + time.evaluationHours)} (${count(time.gpuHours)} GPU-hours)${machine.measured ? '' : ', estimated from public rates'}`;
}

/** The whole plan as text. */
export function planText(plan: Facts): string {
  const { replicate, shard, context, batchSize, microBatch } = plan.layout;
  return [
    `${plan.name}: ${plan.network} by ${plan.method}, ${count(plan.tokens)} tokens a sample`,
    ...(plan.machine ? [`on ${where(plan)}, replicate ${replicate} x shard ${shard} x context ${context}`] : []),
    `batch ${batchSize}, ${microBatch} at a time`,
    ...changedLines(plan),
    ...memoryLines(plan),
    ...timeLines(plan),
    ...dataLines(plan),
    ...adviceLines(plan),
  ].join('\n');
}

function where({ machine, layout }: Facts): string {
  const { gpusPerNode, nodes } = layout;
  return `${gpusPerNode * nodes} x ${machine?.title}${nodes > 1 ? ` on ${nodes} machines` : ''}`;
}

function changedLines({ changed }: Facts): readonly string[] {
  const entries = Object.entries(changed);
  return entries.length === 0 ? [] : [`with${settings(changed)}`];
}

const row = (name: string, value: string): string => `${name.padEnd(24)}${value}`;

function memoryLines({ memory, machine, fits, fewest, largestBatch, largestFrames }: Facts): readonly string[] {
  if (!memory || !machine) return ['', 'compute.device is cpu: memory and time are planned for GPUs (--gpu NAME)'];
  const lines = partsOf(memory).map(([name, bytes]) => row(`  ${name}`, gigabytes(bytes).padStart(7)));
  const verdict = `${gigabytes(memory.needed).padStart(7)}   of ${gigabytes(machine.memoryBytes)}: ${fits ? 'fits' : 'does not fit'}`;
  return [
    '',
    'memory of a GPU, GB',
    ...lines,
    row('  peak', `${gigabytes(memory.peak).padStart(7)}   in the ${memory.when}`),
    row('  needed', verdict),
    ...(memory.offloaded > 0
      ? [row('  main memory', `${gigabytes(memory.offloaded).padStart(7)}   of a machine`)]
      : []),
    row('fewest GPUs', fewest ? `${fewest.gpus}${settings(fewest.set)}` : 'more than 128'),
    row('largest batch', String(largestBatch)),
    ...(largestFrames === null ? [] : [row('longest clip', `${largestFrames} frames`)]),
  ];
}

/** Parts that are there, in words. */
function partsOf(memory: Memory): readonly (readonly [name: string, bytes: number])[] {
  const { weights, averages, optimizer, gradients, activations, working, buffers, other } = memory;
  const named = { averages, 'optimizer state': optimizer, gradients, activations, 'a block at work': working };
  return [
    ...Object.entries(weights),
    ...Object.entries({ ...named, 'gathered weights': buffers, 'losses and libraries': other }),
  ].filter(([, bytes]) => bytes > 0);
}

function timeLines({ time, updates, machine, layout }: Facts): readonly string[] {
  if (!time || !machine) return [];
  const step = (name: string, parts: StepTime): string => {
    const { total, ...rest } = parts;
    const shown = Object.entries(rest).filter(([, value]) => value > 0);
    const listed = shown.map(([part, value]) => `${part} ${seconds(value)}`).join(', ');
    return row(`  ${name}`, `${seconds(total).padStart(7)}   ${listed}`);
  };
  return [
    '',
    `seconds of a step${machine.measured ? '' : ` (estimates: not measured on ${machine.title})`}`,
    ...(time.warmup && updates.warmup > 0 ? [step('student, warm-up', time.warmup)] : []),
    ...(updates.student > 0 ? [step('student', time.student)] : []),
    ...(time.critic ? [step('critic', time.critic)] : []),
    ...(time.critic ? [row('  a rollout call', seconds(time.rolloutCall).padStart(7))] : []),
    row('steps', `${count(updates.warmup + updates.student)} student, ${count(updates.critic)} critic`),
    row('run', `${duration(time.hours)}, evaluations and previews ${duration(time.evaluationHours)}`),
    row('GPU-hours', `${count(time.gpuHours)} on ${layout.gpusPerNode * layout.nodes}`),
  ];
}

function dataLines({ data }: Facts): readonly string[] {
  const { drawn, sampleBytes, buildHoursPerThousand, checkpointBytes, checkpointsKept, exportBytes } = data;
  const build =
    buildHoursPerThousand === null
      ? ''
      : `, built by this network in ${count(buildHoursPerThousand)} GPU-hours a thousand`;
  return [
    '',
    row('samples drawn', `${count(drawn)}; ${gigabytes(1000 * sampleBytes)} GB a thousand on disk${build}`),
    row('checkpoints', `${gigabytes(checkpointBytes)} GB each, ${checkpointsKept} kept`),
    row('exports', `${gigabytes(exportBytes)} GB`),
  ];
}

function adviceLines({ fits, changes, fewest }: Facts): readonly string[] {
  if (fits) return [];
  const ways = changes.map(({ set, needed }) => row(`  ${gigabytes(needed)} GB`, settings(set).trim()));
  if (ways.length > 0) return ['', 'it fits with one of', ...ways];
  return ['', fewest ? `it fits on ${fewest.gpus} GPUs${settings(fewest.set)}` : 'it fits on no number of these GPUs'];
}

function settings(set: Readonly<Record<string, unknown>>): string {
  const words = Object.entries(set).map(([key, value]) => `--set ${flag(key, value)}`);
  return words.length === 0 ? '' : ` ${words.join(' ')}`;
}

const flag = (key: string, value: unknown): string =>
  typeof value === 'object' && value !== null
    ? `'${key}=${JSON.stringify(value).replaceAll('"', '')}'`
    : `${key}=${value}`;

const gigabytes = (bytes: number): string => {
  const size = bytes / 1e9;
  return size >= 100 ? size.toFixed(0) : size >= 1 ? size.toFixed(1) : size.toFixed(2);
};
const seconds = (value: number): string => `${value >= 10 ? value.toFixed(1) : value.toPrecision(3)} s`;
const count = (value: number): string =>
  value.toLocaleString('en', value >= 10 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 2 });

function duration(hours: number): string {
  if (hours < 1) return `${(60 * hours).toPrecision(2)} minutes`;
  return hours < 96 ? `${hours.toFixed(1)} hours` : `${(hours / 24).toFixed(1)} days`;
}
