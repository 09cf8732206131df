/** `bridge.plan()`, and the look at a plan before a run is started. */
import { loadConfig } from '../config/load.ts';
import type { RcmConfig, RcmConfigInput } from '../config/types.ts';
import { isRcmBridgeError, RcmBridgeError, throwIfAborted } from '../errors/index.ts';
import { type GpuName, gpuNamed, gpuNames, knownGpu, type Machine } from '../plan/machines.ts';
import { makePlan, type Plan } from '../plan/plan.ts';
import { listGpus } from '../python/gpus.ts';
import { anySignal, type BridgeContext } from './context.ts';
import type { RunOptions } from './options.ts';

export interface PlanOptions extends Pick<RunOptions, 'set' | 'signal'> {
  /** Plan for this GPU instead of those of this machine. */
  readonly gpu?: GpuName;
  /** GPUs of each machine. Default: those of the config, or of this machine where it has fewer. */
  readonly gpus?: number;
  /** Machines. Default: those of the config, or one where `gpus` is given. */
  readonly nodes?: number;
}

/** What is planned for where this machine has no GPU that is known: what the presets were written for. */
const fallback: GpuName = 'h100';

/** Needs neither GPU nor weights. @throws E_CONFIG_*, E_NETWORK_*, E_USAGE, E_ABORTED */
export async function planConfig(
  context: BridgeContext,
  source: string | RcmConfigInput,
  options: PlanOptions,
  gpus: () => Promise<readonly string[]> = listGpus,
): Promise<Plan> {
  throwIfAborted(anySignal(context.options.signal, options.signal));
  const config = await configFor(context, source, options);
  if (options.gpu === undefined && config.compute.device !== 'cuda') return makePlan(config, null);
  return makePlan(config, await machineOf(context, config, options, gpus));
}

/**
 * The config with the number of GPUs that is asked for, as `distill --gpus` would see it; where its shards or its batch do
 * not divide among those, as it is: the plan then says what has to change.
 */
async function configFor(
  { cwd, env }: BridgeContext,
  source: string | RcmConfigInput,
  { set = [], gpus, nodes }: PlanOptions,
): Promise<RcmConfig> {
  const load = async (more: Readonly<Record<string, number>>): Promise<RcmConfig> => {
    const flags = Object.entries(more).map(([key, value]) => `${key}=${value}`);
    const both = Array.isArray(set) ? [...(set as readonly string[]), ...flags] : { ...set, ...more };
    return (await loadConfig(source, { cwd, env, set: both })).config;
  };
  if (gpus === undefined && nodes === undefined) return load({});
  const asked = { ...(gpus === undefined ? {} : { 'compute.gpusPerNode': gpus }), 'compute.nodes': nodes ?? 1 };
  try {
    return await load(asked);
  } catch (error) {
    if (!isRcmBridgeError(error) || error.code !== 'E_CONFIG_VALUE') throw error;
    return load({}).catch(() => {
      throw error;
    });
  }
}

async function machineOf(
  context: BridgeContext,
  { compute }: RcmConfig,
  { gpu: name, gpus, nodes }: PlanOptions,
  list: () => Promise<readonly string[]>,
): Promise<Machine> {
  const count = { gpusPerNode: gpus ?? compute.gpusPerNode, nodes: nodes ?? (gpus === undefined ? compute.nodes : 1) };
  if (name !== undefined) {
    if (gpuNames.includes(name)) return { gpu: gpuNamed(name), ...count };
    throw new RcmBridgeError('E_USAGE', `No facts are known of the GPU ${JSON.stringify(name)}.`, {
      hint: `Known: ${gpuNames.join(', ')}.`,
    });
  }
  const found = await list();
  const known = found[0] === undefined ? undefined : knownGpu(found[0]);
  if (known) return { gpu: known, ...count, gpusPerNode: gpus ?? Math.min(compute.gpusPerNode, found.length) };
  const here = found[0] === undefined ? 'There is no GPU here' : `No facts are known of the ${found[0]}`;
  context.notice(`${here}: planned for ${gpuNamed(fallback).title}. Others: --gpu ${gpuNames.join('|')}.`);
  return { gpu: gpuNamed(fallback), ...count };
}

/**
 * Says in one line what a run takes, and refuses what does not fit into memory. Silent on a CPU and where the GPU is
 * none of those known. @throws E_GPU_MEMORY
 */
export async function checkPlan(
  context: Pick<BridgeContext, 'notice'>,
  config: RcmConfig,
  ignore: boolean,
  gpus: () => Promise<readonly string[]> = listGpus,
): Promise<void> {
  const { device, gpusPerNode, nodes } = config.compute;
  if (device !== 'cuda') return;
  const [title = ''] = await gpus();
  const gpu = knownGpu(title);
  if (!gpu) return;
  const plan = makePlan(config, { gpu, gpusPerNode, nodes });
  if (plan.fits || ignore) return context.notice(plan.summary);
  const { memory, machine, changes, fewest } = plan;
  const gigabytes = (bytes: number | undefined): string => `${Math.round((bytes ?? 0) / 1e9)} GB`;
  const [way] = changes;
  const set = Object.entries(way?.set ?? {}).map(([key, value]) => `--set ${key}=${JSON.stringify(value)}`);
  const more = fewest ? `It fits on ${fewest.gpus} GPUs.` : 'It fits on no number of these GPUs.';
  throw new RcmBridgeError(
    'E_GPU_MEMORY',
    `Each GPU needs ${gigabytes(memory?.needed)} and has ${gigabytes(machine?.memoryBytes)}.`,
    {
      hint: `${way ? `It fits with ${set.join(' ')}` : more} (\`rcm-bridge plan\` says more; --ignore-plan starts it).`,
    },
  );
}
