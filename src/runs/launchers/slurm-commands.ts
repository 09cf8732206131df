/** sbatch, squeue, sacct and scancel. */
import { execFile } from 'node:child_process';
import { RcmBridgeError } from '../../errors/index.ts';

const limitMs = 60_000;

interface Said {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Where a job stands, in Slurm's words: PENDING, RUNNING, COMPLETED, FAILED, ... */
export interface JobState {
  readonly state: string;
  /** Why it waits, or ''. */
  readonly reason: string;
}

/** Number of the new job. @throws E_SLURM */
export async function submit(script: string, env: NodeJS.ProcessEnv): Promise<string> {
  const { code, stdout, stderr } = await call('sbatch', ['--parsable', script], env);
  const id = /^(\d+)(?:;|$)/.exec(stdout.trim())?.[1];
  if (code === 0 && id !== undefined) return id;
  throw refused(`sbatch did not take the job: ${lastLine(stderr) || `it ended with code ${code}`}`);
}

/** Undefined where Slurm does not know the job any more, and keeps no accounts. @throws E_SLURM */
export async function jobState(id: string, env: NodeJS.ProcessEnv): Promise<JobState | undefined> {
  const queue = await call('squeue', ['--noheader', '--states=all', `--jobs=${id}`, '--format=%T|%r'], env);
  const line = queue.stdout.trim().split('\n')[0];
  if (queue.code === 0 && line) {
    const [state = '', reason = ''] = line.split('|');
    return { state, reason: reason === 'None' ? '' : reason };
  }
  if (queue.code !== 0 && !/invalid job id/i.test(queue.stderr)) {
    throw refused(`squeue does not answer: ${lastLine(queue.stderr)}`);
  }
  const accounts = await call('sacct', ['--noheader', '--parsable2', '-X', `--jobs=${id}`, '--format=State'], env);
  const state = accounts.code === 0 ? accounts.stdout.trim().split('\n').at(-1)?.split(' ')[0] : undefined;
  return state ? { state, reason: '' } : undefined;
}

/** Ends a job that waits, and asks one that runs to write a checkpoint and end. @throws E_SLURM */
export async function cancel(id: string, env: NodeJS.ProcessEnv): Promise<void> {
  const waiting = await call('scancel', ['--state=PENDING', id], env);
  const running = await call('scancel', ['--batch', '--signal=TERM', id], env);
  if (waiting.code === 0 || running.code === 0) return;
  throw refused(`scancel did not end job ${id}: ${lastLine(running.stderr)}`);
}

/** Whether a job of that state will do something yet. */
export const isWaitingOrRunning = ({ state }: JobState): boolean => living.has(state);

const living: ReadonlySet<string> = new Set([
  ...['PENDING', 'CONFIGURING', 'RUNNING', 'COMPLETING', 'SUSPENDED', 'STOPPED', 'SIGNALING', 'STAGE_OUT', 'RESIZING'],
  ...['REQUEUED', 'REQUEUE_FED', 'REQUEUE_HOLD', 'SPECIAL_EXIT', 'RESV_DEL_HOLD', 'PREEMPTED'],
]);

const lastLine = (text: string): string => text.trim().split('\n').at(-1)?.trim() ?? '';

const refused = (message: string): RcmBridgeError => new RcmBridgeError('E_SLURM', `${message.replace(/\.$/, '')}.`);

function call(program: string, words: readonly string[], env: NodeJS.ProcessEnv): Promise<Said> {
  return new Promise((resolve, reject) => {
    execFile(program, words, { env, timeout: limitMs }, (error, stdout, stderr) => {
      if ((error as NodeJS.ErrnoException | null)?.code === 'ENOENT') {
        const hint = 'Use --launcher slurm where Slurm is (a login node), or --launcher torchrun.';
        reject(new RcmBridgeError('E_SLURM', `There is no ${program} on this machine.`, { hint }));
        return;
      }
      resolve({ code: error ? (typeof error.code === 'number' ? error.code : 1) : 0, stdout, stderr });
    });
  });
}
