/** Files and hardware that a config names, looked at before a run has a folder. The sidecar looks inside the files. */
import type { RcmConfig } from '../config/types.ts';
import { RcmBridgeError } from '../errors/index.ts';
import { listGpus } from '../python/gpus.ts';
import type { Job } from './record.ts';
import { locateWeights, namedWeights } from './weights.ts';

/** @throws E_WEIGHTS_NOT_FOUND, E_GPU */
export async function checkHost(
  job: Job,
  config: RcmConfig,
  env: NodeJS.ProcessEnv = process.env,
  gpus: () => Promise<readonly string[]> = listGpus,
): Promise<void> {
  if (config.compute.device === 'cuda' && (await gpus()).length === 0) {
    throw new RcmBridgeError('E_GPU', 'compute.device is cuda, but nvidia-smi finds no GPU on this machine.', {
      hint: 'Train on the CPU: --set compute.device=cpu',
    });
  }
  if (job === 'pretrain') return;
  for (const { locator, adapter } of namedWeights(config)) {
    locateWeights(locator, adapter ? undefined : config.model.name, env);
  }
}
