/** Several machines: the one that leads starts its sidecar as ever, the others join it. */
import type { Launcher } from './launcher.ts';
import type { Rendezvous } from './placement.ts';

/** Starts the sidecar here as rank 0 of a run on several machines, told where to meet them by torchrun's variables. */
export const torchrunLauncher =
  (launch: Launcher, { host, port }: Rendezvous): Launcher =>
  options =>
    launch({ ...options, env: { ...options.env, MASTER_ADDR: host, MASTER_PORT: String(port) } });
