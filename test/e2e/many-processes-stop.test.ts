import { readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runCli, temporaryFolder } from '../cli.ts';
import { onlyRun } from '../run-files.ts';
import { checkpointSteps, everybody, expectStopped, longRun, signalledRun } from './many-processes.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let runDir: string;

beforeAll(async () => {
  folder = await temporaryFolder();
});
afterAll(() => folder.remove());

describe('a run on two processes', () => {
  // SIGUSR1, and a signal to Node alone, are in many-processes-stop.long.test.ts.
  it('ends with a checkpoint when a scheduler sends SIGTERM to every process', async () => {
    const result = await signalledRun(folder.path, longRun, everybody('SIGTERM'));
    runDir = onlyRun(join(folder.path, 'runs'));
    expectStopped(runDir, result, 1);
  }, 200_000);

  it.each([
    ['cut short', /shard-00002.* has \d+ bytes instead of \d+/],
    ['changed by a bit', /shard-00002.* does not match its sha256/],
    ['missing', /shard-00002.* is missing/],
  ])('names a shard that is %s, and offers the checkpoint before it', async (damage, message) => {
    const [previous, last] = checkpointSteps(runDir).slice(-2);
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
