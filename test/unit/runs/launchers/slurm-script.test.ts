import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import {
  checkTimeLimit,
  parseDirectives,
  type SlurmJob,
  slurmScript,
  timeLimitSeconds,
} from '../../../../src/runs/launchers/slurm-script.ts';

let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-slurm-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

const job = (changes: Partial<SlurmJob> = {}): SlurmJob => ({
  name: 'digits',
  cwd: '/data',
  logFile: '/data/log',
  compute: { device: 'cuda', gpusPerNode: 8, nodes: 4, threads: 2 },
  directives: new Map(),
  command: ['node', 'rcm-bridge.js', 'distill', "it's here.json"],
  ...changes,
});

it('asks for what the config needs, and lets the user have the last word', () => {
  const directives = parseDirectives(['partition=gpu', '--gpus-per-node=h100:8', 'exclusive']);
  const script = slurmScript(job({ directives }), '/data/job.sh');
  const lines = script.match(/^#SBATCH .*$/gm);
  expect(lines).toEqual([
    '#SBATCH --job-name=digits',
    '#SBATCH --nodes=4',
    '#SBATCH --ntasks-per-node=1',
    '#SBATCH --cpus-per-task=8',
    '#SBATCH --gpus-per-node=h100:8',
    '#SBATCH --chdir=/data',
    '#SBATCH --output=/data/log',
    '#SBATCH --open-mode=append',
    '#SBATCH --requeue',
    '#SBATCH --signal=B:USR1@120',
    '#SBATCH --partition=gpu',
    '#SBATCH --exclusive',
  ]);
  const words = "--wait=120 node rcm-bridge.js distill 'it'\\''s here.json' --grace 110s";
  expect(script).toContain(`srun --nodes=4 --ntasks-per-node=1 --kill-on-bad-exit=0 ${words} --rdzv "$meeting" &`);
});

it('on one machine without a GPU asks for none and meets nobody', () => {
  const script = slurmScript(job({ compute: { device: 'cpu', gpusPerNode: 2, nodes: 1, threads: 6 } }), '/data/job.sh');
  expect(script).not.toMatch(/rdzv|gpus-per-node/);
  expect(script).toContain('#SBATCH --cpus-per-task=6');
});

it.each([
  ['10', 600],
  ['10:30', 630],
  ['2:00:00', 7200],
  ['1-0', 86_400],
  ['1-12', 129_600],
  ['2-03:30', 185_400],
  ['1-00:00:30', 86_430],
  ['UNLIMITED', undefined],
  ['1:2:3:4', undefined],
])('a time limit of %s is %s seconds', (text, seconds) => {
  expect(timeLimitSeconds(text)).toBe(seconds);
});

it.each([
  [['time=2'], 0, /^A time limit of 2 \(120 s\) leaves no time for one step: the last 120 s are for the checkpoint\.$/],
  [['time=5'], 200, /5 \(300 s\).*a step takes about 200 s\.$/],
  [['time=2', 'signal=B:USR1@110'], 30, /the last 110 s/],
])('refuses %j where a step takes %s s', (given, step, message) => {
  expect(() => checkTimeLimit(parseDirectives(given), step)).toThrow(message);
});

it.each([
  [['time=5'], 100],
  [[], 1e9],
  [['time=INFINITE'], 1e9],
])('takes %j where a step takes %s s', (given, step) => {
  expect(() => checkTimeLimit(parseDirectives(given), step)).not.toThrow();
});

it.each(['', 'p gpu', 'a=b\nc=d', '-p', '=x', 'time='])('refuses %j as an option of sbatch', given => {
  expect(() => parseDirectives([given])).toThrow(/--slurm takes an option of sbatch as KEY=VALUE/);
});

it.each([
  ['succeeds', 'exit 0', undefined, 0, ''],
  ['is cancelled through its folder', 'exit 7', undefined, 7, ''],
  ['is preempted', 'exit 7', undefined, 7, 'requeue 42'],
  ['fails', 'exit 4', undefined, 4, ''],
  ['is told that the time is over', 'trap "exit 7" USR1; while :; do sleep 0.1; done', 'SIGUSR1', 7, 'requeue 42'],
  ['is cancelled', 'trap "exit 7" USR1; while :; do sleep 0.1; done', 'SIGTERM', 7, ''],
  ['has its last step when the time is over', 'trap "exit 0" USR1; while :; do sleep 0.1; done', 'SIGUSR1', 0, ''],
  ['takes its time to stop', 'trap "sleep 1; exit 7" USR1; while :; do sleep 0.1; done', 'SIGUSR1', 7, 'requeue 42'],
])('the script of a run that %s', async (what, command, signal, code, asked) => {
  const preempted = what === 'is preempted' ? '2026-11-24T20:53:57' : 'None';
  const calls = join(folder, 'calls');
  writeFileSync(calls, '');
  writeFileSync(
    join(folder, 'scontrol'),
    `#!/bin/sh\n[ "$1" = show ] && echo "PreemptTime=$PREEMPTED" || echo "$@" >> ${calls}\nexit 1\n`,
  );
  chmodSync(join(folder, 'scontrol'), 0o755);
  writeFileSync(join(folder, 'srun'), '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$1"\n');
  chmodSync(join(folder, 'srun'), 0o755);
  const run = join(folder, 'run');
  writeFileSync(run, `#!/bin/bash\necho ready\n${command}\n`);
  chmodSync(run, 0o755);
  const script = join(folder, 'job.sh');
  const single = { device: 'cpu', gpusPerNode: 1, nodes: 1, threads: 1 } as const;
  writeFileSync(script, slurmScript(job({ compute: single, command: [run] }), script));
  execFileSync('bash', ['-n', script]);
  const child = spawn('bash', [script], {
    env: { PATH: `${folder}:${process.env.PATH}`, SLURM_JOB_ID: '42', PREEMPTED: preempted },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (signal !== undefined)
    child.stdout.once('data', () => setTimeout(() => child.kill(signal as NodeJS.Signals), 100));
  const ended = await new Promise(resolve => child.once('exit', resolve));
  expect(ended).toBe(code);
  expect(readFileSync(calls, 'utf8').trim()).toBe(asked);
});
