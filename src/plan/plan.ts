/** What a run takes on a machine, before anything is spent. Pure: the config and the machine are given. */
import { sampleFacts } from '../config/sizes.ts';
import type { RcmConfig } from '../config/types.ts';
import { type DataNeeds, dataNeeds } from './data-needs.ts';
import { dataRanks, keysOf, type Layout, layoutOf, layoutOn, replicas, withLayout, worldOf } from './layout.ts';
import type { Machine } from './machines.ts';
import { type Memory, memoryOf } from './memory.ts';
import { type Change, changesThatFit, fewestGpus, largestBatch, largestFrames } from './search.ts';
import { planText, summaryOf } from './text.ts';
import { type RunTime, timeOf } from './time.ts';
import { type Updates, updatesOf } from './workload.ts';

export interface Plan {
  readonly name: string;
  readonly method: RcmConfig['method'];
  readonly network: string;
  readonly parameters: number;
  readonly tokens: number;
  /** null: planned for no GPU, because `compute.device` is cpu. */
  readonly machine: PlannedMachine | null;
  readonly layout: Layout & { readonly replicate: number };
  /** Keys that had to change for the number of GPUs. */
  readonly changed: Readonly<Record<string, unknown>>;
  readonly memory: Memory | null;
  /** Whether each GPU has what is needed. */
  readonly fits: boolean;
  readonly fewest: { readonly gpus: number; readonly set: Readonly<Record<string, unknown>> } | null;
  /** Samples a step that go through in one forward of each GPU. */
  readonly largestBatch: number | null;
  readonly largestFrames: number | null;
  readonly updates: Updates;
  readonly time: (RunTime & Hours) | null;
  readonly data: DataNeeds;
  /** What to change where it does not fit. */
  readonly changes: readonly Change[];
  /** One line. */
  readonly summary: string;
  readonly text: string;
}

export interface PlannedMachine {
  readonly gpu: string;
  readonly title: string;
  readonly memoryBytes: number;
  readonly gpusPerNode: number;
  readonly nodes: number;
  /** Whether the rates of this GPU were measured; else times are estimates from public rates. */
  readonly measured: boolean;
}

export interface Hours {
  /** Training, all steps. */
  readonly hours: number;
  /** Network calls of evaluations and previews; decoding and features are not counted. */
  readonly evaluationHours: number;
  readonly gpuHours: number;
}

export function makePlan(config: RcmConfig, machine: Machine | null): Plan {
  const asked = layoutOf(config);
  const layout = machine ? placed(asked, machine) : asked;
  const run = withLayout(config, layout);
  const { network, parameters, tokens } = sampleFacts(config);
  const memory = machine && memoryOf(run, layout);
  const facts = {
    name: config.name,
    method: config.method,
    network,
    parameters,
    tokens,
    layout: { ...layout, replicate: replicas(layout) },
    changed: keysOf(config, layout),
    memory,
    fits: machine === null || memory === null || memory.needed <= machine.gpu.memoryBytes,
    updates: updatesOf(config),
    data: dataNeeds(run, layout, machine?.gpu ?? null),
    ...(machine ? onMachine(config, run, layout, machine) : nowhere),
  };
  const changes = machine && !facts.fits ? changesThatFit(config, layout, machine) : [];
  const plan = { ...facts, changes };
  return { ...plan, summary: summaryOf(plan), text: planText(plan) };
}

const nowhere = { machine: null, fewest: null, largestBatch: null, largestFrames: null, time: null } as const;

function onMachine(asked: RcmConfig, config: RcmConfig, layout: Layout, machine: Machine) {
  const { gpu, gpusPerNode, nodes } = machine;
  const fewest = fewestGpus(asked, gpu.memoryBytes);
  const { name, title, memoryBytes, measured } = gpu;
  return {
    machine: { gpu: name, title, memoryBytes, gpusPerNode, nodes, measured },
    fewest: fewest && { gpus: fewest.gpus, set: fewest.change.set },
    largestBatch: largestBatch(config, layout, memoryBytes),
    largestFrames: largestFrames(config, layout, memoryBytes),
    time: hoursOf(config, layout, timeOf(config, layout, gpu)),
  };
}

/** The config's layout where the machine has as many GPUs, else the nearest one. */
function placed(asked: Layout, { gpusPerNode, nodes }: Machine): Layout {
  if (gpusPerNode === asked.gpusPerNode && nodes === asked.nodes) return asked;
  return layoutOn(asked, gpusPerNode, nodes);
}

function hoursOf(config: RcmConfig, layout: Layout, time: RunTime): RunTime & Hours {
  const { warmup, student, critic } = updatesOf(config);
  const seconds =
    warmup * (time.warmup?.total ?? 0) + student * time.student.total + critic * (time.critic?.total ?? 0);
  const hours = seconds / 3600;
  const evaluationHours = evaluationSeconds(config, layout, time) / 3600;
  return { ...time, hours, evaluationHours, gpuHours: (hours + evaluationHours) * worldOf(layout) };
}

/** Samples are dealt out among the GPUs; those that share a sample work on it together. */
function evaluationSeconds(
  { evaluation, schedule }: RcmConfig,
  layout: Layout,
  { studentCall, teacherCall }: RunTime,
): number {
  const { previews, samples, steps, teacherSteps, everySteps } = evaluation;
  const sum = (values: readonly number[]): number => values.reduce((all, value) => all + value, 0);
  const share = (count: number): number => Math.ceil(count / dataRanks(layout));
  const evaluations = everySteps === null ? 1 : Math.max(1, Math.floor(schedule.steps / everySteps));
  const shown = previews.everySteps === null ? 0 : Math.floor(schedule.steps / previews.everySteps);
  const teacher = share(samples) * sum(teacherSteps) * teacherCall;
  const drawn = evaluations * share(samples) + shown * previews.seeds.length * share(promptCount(previews.prompts));
  return teacher + drawn * sum(steps) * studentCall;
}

/** Shipped prompts say in their name how many they are; a file is taken for eight. */
const promptCount = (prompts: string): number => Number(/^builtin:.*-(\d+)$/.exec(prompts)?.[1] ?? 8);
