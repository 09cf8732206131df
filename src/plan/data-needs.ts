/** What a run reads and writes on disk. */
import type { RcmConfig } from '../config/types.ts';
import { type Layout, withLayout } from './layout.ts';
import type { Gpu } from './machines.ts';
import { timeOf } from './time.ts';
import { hasCritic, type NetworkShape, networkShape, totalOf, trainedParameters } from './workload.ts';

export interface DataNeeds {
  /** Samples that all steps draw; they may repeat. */
  readonly drawn: number;
  /** Latent and text states of one sample on disk. */
  readonly sampleBytes: number;
  /** `data build` for 1,000 samples with this network as teacher; null without a GPU. */
  readonly buildHoursPerThousand: number | null;
  /** One checkpoint: weights, moments and averages of all that trains, float32. */
  readonly checkpointBytes: number;
  /** Those that stay at the end. */
  readonly checkpointsKept: number;
  /** The exports of the student, each layout in bf16. */
  readonly exportBytes: number;
}

/** Steps of the teacher that makes the synthetic set: Euler, 100 steps (rcm-method section 9). */
export const buildSteps = 100;
const storedBytes = 2;

/** Latent and text states of one sample on disk, without what torch.save and tar add. */
export const sampleBytes = ({ latentSize, textSize }: NetworkShape): number => storedBytes * (latentSize + textSize);

/** Seconds that one GPU alone takes for a sample of `data build`. */
export function buildSeconds(config: RcmConfig, gpu: Gpu, steps: number): number {
  const alone: Layout = { gpusPerNode: 1, nodes: 1, shard: 1, context: 1, batchSize: 1, microBatch: 1 };
  return steps * timeOf(withLayout(config, alone), alone, gpu).teacherCall;
}

export function dataNeeds(config: RcmConfig, layout: Layout, gpu: Gpu | null): DataNeeds {
  const shape = networkShape(config);
  const { schedule, checkpoints } = config;
  const { keepLast, keepEverySteps, everySteps } = checkpoints;
  const written = everySteps === null ? 1 : Math.max(1, Math.floor(schedule.steps / everySteps));
  const forGood = keepEverySteps === null ? 0 : Math.floor(schedule.steps / keepEverySteps);
  return {
    drawn: schedule.steps * schedule.batchSize,
    sampleBytes: sampleBytes(shape),
    buildHoursPerThousand: gpu && (1000 * buildSteps * timeOf(config, layout, gpu).teacherCall * layout.context) / 3600,
    checkpointBytes: checkpointBytes(config, shape),
    checkpointsKept: Math.min(written, keepLast + forGood),
    exportBytes: checkpoints.export.length * storedBytes * totalOf(shape),
  };
}

function checkpointBytes({ method, student, critic }: RcmConfig, shape: NetworkShape): number {
  const tensors = (first: number): number => (first > 0 ? 3 : 2);
  const owners = hasCritic(method) ? [student, critic] : [student];
  const count = owners.reduce((sum, { optimizer: { betas } }) => sum + tensors(betas[0] ?? 0), student.ema.length);
  return count * 4 * trainedParameters(shape);
}
