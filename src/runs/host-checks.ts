/** Files and hardware that a config names, looked at before a run has a folder. The sidecar looks inside the files. */
import os from 'node:os';
import { processesOf, undividedBatch } from '../config/parallel.ts';
import type { RcmConfig } from '../config/types.ts';
import { isUnfinished, shardsIn } from '../data/set-folder.ts';
import { RcmBridgeError } from '../errors/index.ts';
import { listGpus } from '../python/gpus.ts';
import type { Job } from './record.ts';
import { locateWeights, namedWeights } from './weights.ts';

/** @throws E_WEIGHTS_NOT_FOUND, E_DATA_NOT_FOUND, E_GPU, E_CONFIG_VALUE, E_CONFIG_NOT_YET */
export async function checkHost(
  job: Job,
  config: RcmConfig,
  env: NodeJS.ProcessEnv = process.env,
  gpus: () => Promise<readonly string[]> = listGpus,
): Promise<void> {
  checkPretrainingBatch(job, config);
  checkData(job, config);
  await checkProcesses(config.compute, gpus);
  checkWeights(job, config, env);
}

/** The same where the run will be started on other machines: their GPUs cannot be seen from here, but their files. */
export function checkFiles(job: Job, config: RcmConfig, env: NodeJS.ProcessEnv = process.env): void {
  checkPretrainingBatch(job, config);
  checkData(job, config);
  checkWeights(job, config, env);
}

function checkWeights(job: Job, config: RcmConfig, env: NodeJS.ProcessEnv): void {
  if (job === 'pretrain') return;
  for (const { locator, adapter } of namedWeights(config)) {
    locateWeights(locator, adapter ? undefined : config.model.name, env);
  }
}

/** The shards are there; the sidecar looks inside. */
function checkData(job: Job, { data }: RcmConfig): void {
  if (data.kind !== 'latentShards' || data.path === null) return;
  if (job === 'pretrain') {
    const text = 'pretrain trains a teacher of labels, and data.kind is latentShards.';
    throw new RcmBridgeError('E_CONFIG_NOT_YET', text, { hint: 'Use data.kind: digits.' });
  }
  if (isUnfinished(data.path)) {
    throw new RcmBridgeError('E_DATA_NOT_FOUND', `The set in ${data.path} is not complete.`, {
      hint: 'Run the command that makes it again: it goes on. To train on the shards there are, remove .parts in it.',
    });
  }
  if (shardsIn(data.path) > 0) return;
  throw new RcmBridgeError('E_DATA_NOT_FOUND', `There are no shards (*.tar) in ${data.path}.`, {
    hint: 'Make them with `rcm-bridge data build`, or set data.path to the folder that holds them (docs/data.md).',
  });
}

/** Imports alone: measured on Linux, without what is trained. */
const processBytes = 0.3e9;

async function checkProcesses(compute: RcmConfig['compute'], gpus: () => Promise<readonly string[]>): Promise<void> {
  const { device, gpusPerNode } = compute;
  if (device === 'cuda') return checkGpus(gpusPerNode, (await gpus()).length);
  if (gpusPerNode === 1) return;
  const found = device === 'cpu' ? 0 : (await gpus()).length;
  if (found > 0) checkGpus(gpusPerNode, found);
  else checkMemory(gpusPerNode);
}

function checkMemory(processes: number): void {
  const bytes = Math.min(os.totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);
  const most = Math.floor(bytes / processBytes);
  if (processes <= most) return;
  throw new RcmBridgeError(
    'E_CONFIG_VALUE',
    `compute.gpusPerNode is ${processes}: so many processes take ${Math.ceil((processes * processBytes) / 1e9)} GB before they train anything, and this machine has ${Math.floor(bytes / 1e9)} GB.`,
    { hint: `Use at most --gpus ${most}; on a CPU more processes than cores are slower than one.` },
  );
}

/** @throws E_GPU */
export function checkGpus(wanted: number, found: number): void {
  if (found >= wanted) return;
  if (found === 0) {
    throw new RcmBridgeError('E_GPU', 'compute.device is cuda, but nvidia-smi finds no GPU on this machine.', {
      hint: 'Train on the CPU: --set compute.device=cpu',
    });
  }
  throw new RcmBridgeError(
    'E_GPU',
    `compute.gpusPerNode is ${wanted}, but this machine has ${found === 1 ? 'one GPU' : `${found} GPUs`}.`,
    {
      hint: `Use --gpus ${found}, or --set compute.device=cpu.`,
    },
  );
}

/** Distillations do not read it, so that it is no conflict of theirs. */
function checkPretrainingBatch(job: Job, config: RcmConfig): void {
  const undivided = undividedBatch(config.pretrain.batchSize, processesOf(config));
  if (job !== 'pretrain' || !undivided) return;
  throw new RcmBridgeError('E_CONFIG_VALUE', `pretrain.batchSize ${undivided.text}.`, { hint: undivided.hint });
}
