/** The batch script of a run: what sbatch gets, and what Slurm runs again after a time limit or a preemption. */
import type { RcmConfig } from '../../config/types.ts';
import { RcmBridgeError } from '../../errors/index.ts';

/** Lines `#SBATCH --KEY=VALUE`; null: `#SBATCH --KEY`. */
export type Directives = ReadonlyMap<string, string | null>;

/** So long before the time limit the script is told to write a checkpoint and to end, unless a directive says else. */
const defaultNoticeSeconds = 120;
/** What of that is for the scheduler; the rest is what a run may take to stop. */
const schedulerSeconds = 10;

export interface SlurmJob {
  readonly name: string;
  readonly cwd: string;
  /** What the job prints. */
  readonly logFile: string;
  readonly compute: Pick<RcmConfig['compute'], 'device' | 'gpusPerNode' | 'nodes' | 'threads'>;
  /** Those of the user replace ours. */
  readonly directives: Directives;
  /** Program and words, without --grace. */
  readonly command: readonly string[];
}

/** `partition=gpu`, `exclusive`: words after #SBATCH without their dashes. @throws E_USAGE */
export function parseDirectives(given: readonly string[]): Directives {
  return new Map(
    given.map(text => {
      const [, key, value] = /^(?:--)?([a-z][a-z-]*)(?:=([^\r\n]+))?$/.exec(text.trim()) ?? [];
      if (key !== undefined) return [key, value ?? null] as const;
      throw new RcmBridgeError(
        'E_USAGE',
        `--slurm takes an option of sbatch as KEY=VALUE, not ${JSON.stringify(text)}.`,
        {
          hint: 'Long names: --slurm partition=gpu --slurm time=24:00:00 --slurm exclusive',
        },
      );
    }),
  );
}

/**
 * Seconds of a time limit as sbatch takes it (`minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours[:...]`);
 * undefined where it is none, such as UNLIMITED.
 */
export function timeLimitSeconds(text: string): number | undefined {
  const [, days, clock = ''] = /^(?:(\d+)-)?(\d+(?::\d+){0,2})$/.exec(text.trim()) ?? [];
  if (clock === '') return undefined;
  const parts = clock.split(':').map(Number);
  const first = days !== undefined || parts.length === 3 ? 3600 : 60;
  const seconds = parts.reduce((sum, part, place) => sum + part * (first / 60 ** place), 0);
  return Number(days ?? 0) * 86_400 + seconds;
}

/** A limit that ends the run before its first step is over would requeue it for ever. @throws E_TIME_LIMIT */
export function checkTimeLimit(directives: Directives, stepSeconds: number): void {
  const text = directives.get('time');
  const limit = text ? timeLimitSeconds(text) : undefined;
  const notice = noticeSeconds(directives);
  if (limit === undefined || limit > notice + stepSeconds) return;
  const step = stepSeconds > 0 ? `, and a step takes about ${Math.ceil(stepSeconds)} s` : '';
  throw new RcmBridgeError(
    'E_TIME_LIMIT',
    `A time limit of ${text} (${limit} s) leaves no time for one step: the last ${notice} s are for the checkpoint${step}.`,
    {
      hint: 'Give more than that with --slurm time=HH:MM:SS; with some hours less is lost to starting up.',
      details: { limit, stepSeconds },
    },
  );
}

/** The names of machines in Slurm need not be known to the resolver; their addresses are what Slurm itself uses. */
const meeting = `# Where the machines meet: the first of them listens there.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
meeting=\${address:-$first}:$((20000 + SLURM_JOB_ID % 10000))

`;

/** From `--signal=B:USR1@SECONDS`. */
function noticeSeconds(directives: Directives): number {
  const given = /@(\d+)$/.exec(directives.get('signal') ?? '')?.[1];
  return given === undefined ? defaultNoticeSeconds : Number(given);
}

export function slurmScript(job: SlurmJob, path: string): string {
  const lines = [...defaultDirectives(job), ...job.directives].reduce(
    (all, [key, value]) => all.set(key, value),
    new Map<string, string | null>(),
  );
  const directives = [...lines].map(([key, value]) => `#SBATCH --${key}${value === null ? '' : `=${value}`}`);
  const { nodes } = job.compute;
  const grace = `${Math.max(1, noticeSeconds(lines) - schedulerSeconds)}s`;
  const words = [...job.command, '--grace', grace].map(quoted).join(' ');
  const start = `srun --nodes=${nodes} --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 ${words}${nodes > 1 ? ' --rdzv "$meeting"' : ''}`;
  return `#!/bin/bash
# Written by rcm-bridge. Submitted again, it goes on with the run from its newest checkpoint: sbatch ${path}
${directives.join('\n')}

# srun does not take this over from sbatch by itself.
export SRUN_CPUS_PER_TASK=\${SLURM_CPUS_PER_TASK:-1}

${nodes > 1 ? meeting : ''}child=
asked=
stop() {
  asked=$1
  # The run writes a checkpoint and ends with 7, on USR1 as on TERM; srun passes only the first on.
  [ -z "$child" ] || kill -s USR1 "$child" 2>/dev/null
}
trap 'stop time' USR1
trap 'stop cancel' TERM

# A step of its own: when the job is preempted, Slurm tells its steps and not this script. Machines that wait for one that
# has ended already are ended with it.
${start} &
child=$!
wait "$child"
code=$?
# A signal ends \`wait\`, not the run.
while kill -0 "$child" 2>/dev/null; do
  wait "$child"
  code=$?
done
if [ -n "$asked" ]; then
  wait "$child"
  code=$?
fi

if [ "$code" = 7 ] && [ -z "$asked" ] && scontrol show job "$SLURM_JOB_ID" | grep -q 'PreemptTime=[0-9]'; then
  asked=preempt
fi
if [ "$code" = 7 ] && { [ "$asked" = time ] || [ "$asked" = preempt ]; }; then
  echo "Stopped for a reason of the queue ($asked); the run goes on in a new turn of job $SLURM_JOB_ID."
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
`;
}

function defaultDirectives({ name, cwd, logFile, compute }: SlurmJob): readonly (readonly [string, string | null])[] {
  const { device, gpusPerNode, nodes, threads } = compute;
  const cpus = Math.max(threads, gpusPerNode);
  return [
    ['job-name', name],
    ['nodes', String(nodes)],
    ['ntasks-per-node', '1'],
    ['cpus-per-task', String(cpus)],
    ...(device === 'cpu' ? [] : [['gpus-per-node', String(gpusPerNode)] as const]),
    ['chdir', cwd],
    ['output', logFile],
    ['open-mode', 'append'],
    ['requeue', null],
    ['signal', `B:USR1@${defaultNoticeSeconds}`],
  ];
}

/** For bash. */
const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
