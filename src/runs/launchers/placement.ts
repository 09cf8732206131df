/** Where a run's processes are started: `compute.launcher`, the flags that belong to it, and Slurm's variables. */
import type { RcmConfig } from '../../config/types.ts';
import { RcmBridgeError } from '../../errors/index.ts';
import { slurmMeeting, slurmNode } from './slurm-variables.ts';

/** The address where the processes of several machines meet: one of the machine that leads. */
export interface Rendezvous {
  readonly host: string;
  readonly port: number;
}

export type Placement =
  /** All processes on this machine. */
  | { readonly launcher: 'local' }
  /** The same command on several machines; machine 0 leads. */
  | { readonly launcher: 'torchrun'; readonly rendezvous: Rendezvous; readonly node: number }
  /** The command becomes a job of Slurm. */
  | { readonly launcher: 'slurm' };

export interface PlacementOptions {
  /** HOST:PORT of machine 0. It listens there: naming the address is the consent to that. */
  readonly rendezvous?: string;
  /** Number of this machine, from 0. Default within a job of Slurm: SLURM_NODEID. */
  readonly nodeRank?: number;
  /** Options of sbatch. */
  readonly slurm?: readonly string[];
}

/**
 * Where a run goes. Within a job of Slurm nothing is submitted again, so that a config may say `slurm`.
 * @throws E_USAGE, E_CONFIG_VALUE
 */
export function placementOf(
  { launcher, nodes }: Pick<RcmConfig['compute'], 'launcher' | 'nodes'>,
  options: PlacementOptions,
  env: NodeJS.ProcessEnv,
): Placement {
  if (launcher !== 'slurm' && options.slurm?.length) {
    throw new RcmBridgeError('E_USAGE', `--slurm is for jobs of Slurm, and compute.launcher is ${launcher}.`, {
      hint: 'Add --launcher slurm, or leave --slurm out.',
    });
  }
  const isInJob = env.SLURM_JOB_ID !== undefined;
  if (launcher === 'slurm' && !isInJob) return { launcher: 'slurm' };
  if (nodes === 1) {
    if (options.rendezvous === undefined && !options.nodeRank) return { launcher: 'local' };
    throw new RcmBridgeError('E_USAGE', '--rdzv and --node-rank are for several machines, and compute.nodes is 1.', {
      hint: 'Say how many: --nodes N.',
    });
  }
  if (launcher === 'local') {
    throw new RcmBridgeError('E_CONFIG_VALUE', `compute.launcher is local, and compute.nodes is ${nodes}.`, {
      hint: 'Use --launcher torchrun with --rdzv HOST:PORT, or --launcher slurm.',
    });
  }
  const rendezvous = options.rendezvous === undefined ? slurmMeeting(env) : parseRendezvous(options.rendezvous);
  if (rendezvous === undefined) throw noRendezvous(nodes);
  return { launcher: 'torchrun', rendezvous, node: nodeOf(nodes, options.nodeRank ?? slurmNode(env)) };
}

/** `HOST:PORT`, `[ADDRESS]:PORT` for IPv6. @throws E_USAGE */
export function parseRendezvous(given: string): Rendezvous {
  const [, bracketed, plain, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:[\]/]+)):(\d{1,5})$/.exec(given) ?? [];
  const host = bracketed ?? plain;
  const port = Number(digits);
  if (host !== undefined && port > 0 && port < 65_536) return { host, port };
  throw new RcmBridgeError('E_USAGE', `--rdzv takes HOST:PORT, not ${JSON.stringify(given)}.`, {
    hint: 'An address of machine 0 as the others reach it, and a free port there: --rdzv 10.0.0.5:29400',
  });
}

function noRendezvous(nodes: number): RcmBridgeError {
  return new RcmBridgeError('E_USAGE', `compute.nodes is ${nodes}, and nothing says where the machines meet.`, {
    hint: 'Add --rdzv HOST:PORT, an address of machine 0, and --node-rank; or use --launcher slurm (docs/launchers.md).',
  });
}

function nodeOf(nodes: number, node: number | undefined): number {
  if (node !== undefined && node < nodes) return node;
  const message =
    node === undefined
      ? `compute.nodes is ${nodes}, and nothing says which of them this machine is.`
      : `--node-rank is ${node}, and compute.nodes is ${nodes}.`;
  throw new RcmBridgeError('E_USAGE', message, {
    hint: `Type the same command on every machine, with --node-rank 0 to ${nodes - 1}.`,
  });
}
