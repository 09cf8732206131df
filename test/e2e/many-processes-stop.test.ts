import { readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';
import { onlyRun, readJson } from '../run-files.ts';
import { everybody, isAlive, longRun, type SignalledRun, signalledRun } from './many-processes.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let runDir: string;

function expectStopped(result: SignalledRun, attempt: number): void {
  expect(result.code, result.stderr).toBe(7);
  expect(result.seconds).toBeLessThan(60);
  expect(result.pids.length).toBeGreaterThanOrEqual(4);
  expect(result.pids.filter(isAlive)).toEqual([]);
  const { state, exitCode, progress, ...record } = readJson(join(runDir, 'run.json')) as {
    state: string;
    exitCode: number;
    progress: { step: number };
    attempt?: number;
  };
  expect({ state, exitCode, attempt: record.attempt }).toEqual({ state: 'stopped', exitCode: 7, attempt });
  expect(checkpoints().at(-1)).toBe(progress.step);
}

const checkpoints = (): readonly number[] =>
  readdirSync(join(runDir, 'checkpoints'))
    .map(name => Number(name.slice('step-'.length)))
    .sort((a, b) => a - b);

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

describe('a run on two processes', () => {
  it('ends with a checkpoint when a scheduler sends SIGTERM to every process', async () => {
    const result = await signalledRun(folder.path, longRun, everybody('SIGTERM'));
    runDir = onlyRun(join(folder.path, 'runs'));
    expectStopped(result, 1);
  }, 200_000);

  it.skipIf(process.env.RCM_TEST_LONG === undefined)(
    'does so at SIGUSR1, and when Node alone hears it',
    async () => {
      expectStopped(await signalledRun(folder.path, ['resume', 'last'], everybody('SIGUSR1')), 2);
      expectStopped(await signalledRun(folder.path, ['resume', 'last'], node => node.kill('SIGUSR1')), 3);
    },
    400_000,
  );

  it.each([
    ['cut short', /shard-00002.* has \d+ bytes instead of \d+/],
    ['changed by a bit', /shard-00002.* does not match its sha256/],
    ['missing', /shard-00002.* is missing/],
  ])('names a shard that is %s, and offers the checkpoint before it', async (damage, message) => {
    const [previous, last] = checkpoints().slice(-2);
    const shard = shardOf(last ?? 0);
    const whole = readFileSync(shard);
    if (damage === 'cut short') truncateSync(shard, whole.length - 1);
    else if (damage === 'missing') rmSync(shard);
    else
      writeFileSync(
        shard,
        whole.map((byte, index) => (index === whole.length - 1 ? byte ^ 1 : byte)),
      );
    const refused = await runCli(['resume', 'last', '--runs-dir', 'runs'], { cwd: folder.path });
    expect(refused.code).toBe(5);
    expect(refused.stdout).toBe('');
    expect(refused.stderr.trim().split('\n')).toHaveLength(2);
    expect(refused.stderr).toMatch(message);
    expect(refused.stderr).toContain(`--from-step ${previous} `);
    writeFileSync(`${shard}.new`, whole);
    renameSync(`${shard}.new`, shard);
  });
});

/** The second process's shard of the student. */
function shardOf(step: number): string {
  const student = join(runDir, 'checkpoints', `step-${String(step).padStart(8, '0')}`, 'student');
  const name = readdirSync(student).find(found => found.startsWith('shard-00002'));
  if (name === undefined) throw new Error(`no second shard in ${student}`);
  return join(student, name);
}
