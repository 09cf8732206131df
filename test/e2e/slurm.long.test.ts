import type { ChildProcess } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';
import { onlyRun, readJson } from '../run-files.ts';
import { nodeWords } from './nodes.ts';
import { isSlurmInstalled, type SlurmCluster, startSlurm } from './slurm-cluster.ts';

/** Needs root and Debian's slurm-wlm and munge, which scripts/test-long.sh installs where it can. */
describe.skipIf(!isSlurmInstalled)('a job of Slurm', () => {
  let folder: Awaited<ReturnType<typeof temporaryFolder>>;
  let slurm: SlurmCluster;

  beforeAll(async () => {
    folder = await temporaryFolder();
    slurm = await startSlurm(folder.path);
  });
  afterAll(async () => {
    await slurm?.stop();
    await folder.remove();
  });

  const submit = (
    runsDir: string,
    words: readonly string[],
    onSpawn: (child: ChildProcess) => void = () => undefined,
  ) =>
    runCli([...words, '--runs-dir', runsDir, '--launcher', 'slurm', '--slurm', 'time=10', '--no-progress'], {
      cwd: folder.path,
      env: slurm.env,
      timeoutMs: 240_000,
      onSpawn,
    });

  /** The newest job, once its run has reached that step in that attempt. */
  async function jobAtStep(runsDir: string, attempt: number, step: number): Promise<string> {
    for (let tries = 0; tries < 240; tries += 1) {
      if (lastStep(runsDir, attempt) >= step) return newestJob();
      await sleep(500);
    }
    throw new Error(`step ${step} of attempt ${attempt} was not reached: ${jobLog(runsDir)}`);
  }

  const newestJob = async (): Promise<string> =>
    (await slurm.call('squeue', '--noheader', '--partition=low', '--format=%i')).trim().split('\n').at(-1) ?? '';

  /** A job that was requeued waits two minutes for no reason. */
  async function startAgain(job: string): Promise<void> {
    for (let tries = 0; tries < 120; tries += 1) {
      const state = await slurm.call('squeue', '--noheader', `--jobs=${job}`, '--format=%T');
      if (state.trim() === 'PENDING') break;
      await sleep(500);
    }
    await slurm.call('scontrol', 'update', `JobId=${job}`, 'StartTime=now');
  }

  it('on two machines checkpoints before its time is over, is requeued, and finishes; the command follows it all', async () => {
    const runsDir = join(folder.path, 'timed');
    const followed = submit(runsDir, [...nodeWords(40, 500), '--nodes', '2']);
    const job = await jobAtStep(runsDir, 1, 3);
    // What --signal=B:USR1@120 does two minutes before the limit.
    await slurm.call('scancel', '--batch', '--signal=USR1', job);
    await startAgain(job);
    const { code, stderr, stdout } = await followed;
    expect(code, `${stderr}\n${jobLog(runsDir)}`).toBe(0);
    expect(stdout).toMatch(/^succeeded at step 40/);
    const runDir = onlyRun(runsDir);
    expect(readJson(join(runDir, 'run.json'))).toMatchObject({
      state: 'succeeded',
      attempt: 2,
      progress: { step: 40 },
    });
    expect(readdirSync(join(runDir, 'logs'))).toContain('rank-1.log');
    expect(jobLog(runsDir)).toMatch(/stopped at step \d+.*\(time\); the run goes on/s);
  }, 300_000);

  it('gives way to a job that matters more, goes on after it, and is cancelled by Ctrl-C after a checkpoint', async () => {
    const runsDir = join(folder.path, 'preempted');
    let command: ChildProcess | undefined;
    const followed = submit(runsDir, nodeWords(5_000, 5_000), child => {
      command = child;
    });
    const job = await jobAtStep(runsDir, 1, 3);
    await slurm.call('srun', '--partition=high', '--nodes=2', '--exclusive', 'true');
    await startAgain(job);
    await jobAtStep(runsDir, 2, lastStep(runsDir, 1) + 2);
    command?.kill('SIGINT');
    const { code, stderr } = await followed;
    expect(code, `${stderr}\n${jobLog(runsDir)}`).toBe(7);
    expect(jobLog(runsDir)).toMatch(/\(preempt\); the run goes on/);
    const runDir = onlyRun(runsDir);
    const { progress } = readJson(join(runDir, 'run.json')) as { progress: { step: number } };
    expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'stopped', attempt: 2, exitCode: 7 });
    expect(existsSync(join(runDir, 'checkpoints', `step-${String(progress.step).padStart(8, '0')}`))).toBe(true);
    expect(await slurm.call('squeue', '--noheader', '--states=PENDING,RUNNING')).toBe('');
  }, 300_000);

  it('says what sbatch or the job has to say', async () => {
    const unknown = await submit(join(folder.path, 'none'), [...nodeWords(2, 2), '--slurm', 'partition=nowhere']);
    expect(unknown.code).toBe(3);
    expect(unknown.stderr).toMatch(/E_SLURM: sbatch did not take the job: .*invalid partition/i);
  });
});

function lastStep(runsDir: string, attempt: number): number {
  const folders = existsSync(runsDir) ? readdirSync(runsDir).filter(name => !name.startsWith('.')) : [];
  const path = join(runsDir, folders[0] ?? 'none', 'metrics.ndjson');
  if (!existsSync(path)) return 0;
  const lines = readFileSync(path, 'utf8').trim().split('\n');
  return lines.reduce((last, line) => {
    if (!line.includes(`"attempt":${attempt},`)) return last;
    return Math.max(last, Number(/"step":(\d+)/.exec(line)?.[1] ?? 0));
  }, 0);
}

function jobLog(runsDir: string): string {
  const files = join(runsDir, '.slurm');
  const name = existsSync(files) ? readdirSync(files).find(file => file.endsWith('.log')) : undefined;
  return name === undefined ? '' : readFileSync(join(files, name), 'utf8');
}
