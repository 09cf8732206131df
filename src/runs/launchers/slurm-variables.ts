/** What Slurm tells a process of one of its jobs. */
import type { Rendezvous } from './placement.ts';

type Variables = Readonly<Record<string, string | undefined>>;

/** Ports that are nobody's: below those that Linux gives out by itself. */
const ports = { first: 20_000, count: 10_000 } as const;

/** Number of this machine within its job step (one task a machine). */
export function slurmNode(env: Variables): number | undefined {
  const text = env.SLURM_JOB_ID === undefined ? undefined : env.SLURM_NODEID;
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined;
}

/** The first machine of the job, and a port that follows from the job's number: all its processes come to the same. */
export function slurmMeeting(env: Variables): Rendezvous | undefined {
  const names = env.SLURM_STEP_NODELIST ?? env.SLURM_JOB_NODELIST;
  if (env.SLURM_JOB_ID === undefined || !names) return undefined;
  return { host: firstHost(names), port: ports.first + (Number(env.SLURM_JOB_ID) % ports.count) };
}

/** `gpu[003-004,7],login1` begins with gpu003. */
export function firstHost(names: string): string {
  const [first = names] = /^(?:[^,[]|\[[^\]]*\])+/.exec(names) ?? [];
  return first.replace(/\[(\d+)[^\]]*\]/g, '$1');
}
