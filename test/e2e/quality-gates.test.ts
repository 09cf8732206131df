import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { onlyRun, readJson } from '../run-files.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;

beforeAll(async () => {
  folder = await temporaryFolder();
});

afterAll(() => folder.remove());

describe('a run that misses a gate', () => {
  it('has succeeded, ends with exit 6 and says which gate; resume finds nothing left to do', async () => {
    const gate = ['--set', 'evaluation.gates=[{ metric: accuracy, steps: 1, atLeast: 1.5 }]'];
    const missed = await runCli(['distill', ...quickRun(4), ...gate, '--json'], { cwd: folder.path });
    expect(missed.code, missed.stderr).toBe(6);
    expect(missed.stderr).toContain('Gate not met: accuracy at 1 step at least 1.5');
    expect(JSON.parse(missed.stdout)).toMatchObject({
      schema: 1,
      state: 'succeeded',
      exitCode: 6,
      scorecard: { met: false, gates: [{ met: false, bound: 1.5 }] },
    });
    const runDir = onlyRun(join(folder.path, 'runs'));
    expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'succeeded', exitCode: 6, error: null });

    const listed = await runCli(['runs', 'list'], { cwd: folder.path });
    expect(listed.stdout).toMatch(/succeeded {2}4\/4 {2}gates not met\n/);
    const shown = await runCli(['runs', 'show', 'last'], { cwd: folder.path });
    expect(shown.stdout).toMatch(/^gate not met {2}\S/m);

    const again = await runCli(['resume', 'last', '--json'], { cwd: folder.path });
    expect(again.code, again.stderr).toBe(0);
    expect(again.stderr).toMatch(/already reached its total of 4 steps/);
  });

  // Nor in a pretraining: cosmos-digits.test.ts has one.
  it('judges none in a smoke run', async () => {
    const words = ['distill', '--smoke', '--set', 'compute.threads=1', '--set', 'schedule.batchSize=16'];
    const smoke = await runCli([...words, '--runs-dir', 'smoke', '--json'], { cwd: folder.path });
    expect(smoke.code, smoke.stderr).toBe(0);
    expect(JSON.parse(smoke.stdout)).toMatchObject({ schema: 1, exitCode: 0, scorecard: { gates: [] } });
  });
});
