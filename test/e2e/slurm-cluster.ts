/** Debian's Slurm with two machines, both of them this one: munged, slurmctld and two slurmd on the loopback interface. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { freePort } from './nodes.ts';

const programs = ['/usr/sbin/munged', '/usr/sbin/slurmctld', '/usr/sbin/slurmd'] as const;

export const isSlurmInstalled = programs.every(path => existsSync(path)) && process.getuid?.() === 0;

export interface SlurmCluster {
  /** For those who talk to it. */
  readonly env: Readonly<Record<string, string>>;
  /** A command of Slurm; what it printed. */
  readonly call: (program: string, ...words: readonly string[]) => Promise<string>;
  readonly stop: () => Promise<void>;
}

export async function startSlurm(folder: string): Promise<SlurmCluster> {
  const [munged, slurmctld, slurmd] = programs;
  const conf = join(folder, 'slurm.conf');
  for (const name of ['state', 'spool-n1', 'spool-n2']) mkdirSync(join(folder, name));
  writeFileSync(join(folder, 'munge.key'), randomBytes(1024), { mode: 0o600 });
  writeFileSync(conf, await configuration(folder));
  const env = { SLURM_CONF: conf };
  const children: ChildProcess[] = [];
  const begin = (program: string, ...words: readonly string[]): void => {
    children.push(spawn(program, words, { env: { ...process.env, ...env }, stdio: 'ignore' }));
  };
  const call = async (program: string, ...words: readonly string[]): Promise<string> =>
    (await promisify(execFile)(program, words, { env: { ...process.env, ...env } })).stdout;
  const file = (name: string): string => join(folder, name);
  begin(
    munged,
    ...['--foreground', '--force', `--key-file=${file('munge.key')}`, `--socket=${file('munge.socket')}`],
    ...[`--pid-file=${file('munged.pid')}`, `--log-file=${file('munged.log')}`, `--seed-file=${file('seed')}`],
  );
  while (!existsSync(file('munge.socket'))) await sleep(50);
  begin(slurmctld, '-D', '-c');
  for (const node of ['n1', 'n2']) begin(slurmd, '-D', '-N', node);
  for (let tries = 0; ; tries += 1) {
    const states = await call('sinfo', '--noheader', '--Node', '--partition=low', '--format=%t').catch(() => '');
    if (states.trim() === 'idle\nidle') break;
    if (tries > 60) throw new Error(`Slurm does not come up: ${states}`);
    await sleep(500);
  }
  const stop = async (): Promise<void> => {
    await call('scancel', '--user=root').catch(() => '');
    await sleep(2_000);
    for (const child of children.reverse()) {
      const ended = new Promise(resolve => child.once('exit', resolve));
      child.kill('SIGTERM');
      await Promise.race([ended, sleep(5_000).then(() => child.kill('SIGKILL'))]);
    }
  };
  return { env, call, stop };
}

async function configuration(folder: string): Promise<string> {
  const [controller, first, second] = [await freePort(), await freePort(), await freePort()];
  const host = hostname().split('.')[0];
  return `ClusterName=rcmtest
SlurmctldHost=${host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=${folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=${controller}
StateSaveLocation=${folder}/state
SlurmdSpoolDir=${folder}/spool-%n
SlurmctldPidFile=${folder}/slurmctld.pid
SlurmdPidFile=${folder}/slurmd-%n.pid
SlurmctldLogFile=${folder}/slurmctld.log
SlurmdLogFile=${folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=${host} NodeAddr=127.0.0.1 Port=${first} CPUs=2
NodeName=n2 NodeHostname=${host} NodeAddr=127.0.0.1 Port=${second} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
`;
}
