import type { ChildProcess } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { quickRun, runCli, temporaryFolder } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { finalWeights, metricsByStep, onlyRun, readJson } from '../run-files.ts';

const steps = 14;
const checkpointEvery = ['--set', 'checkpoints.everySteps=4'];
let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let reference: string;

beforeAll(async () => {
  folder = await temporaryFolder();
  const done = await runCli(['distill', ...quickRun(steps), ...checkpointEvery, '--runs-dir', 'reference'], {
    cwd: folder.path,
  });
  expect(done.code, done.stderr).toBe(0);
  reference = onlyRun(join(folder.path, 'reference'));
});

afterAll(() => folder.remove());

describe('a run that was killed', () => {
  it.each(['sidecar', 'node', 'both'] as const)(
    'finishes bit for bit as if it had not been: %s',
    async victim => {
      const runsDir = join(folder.path, victim);
      const killed = await runCli(
        ['distill', ...quickRun(steps), ...checkpointEvery, '--runs-dir', victim, '--format', 'ndjson'],
        { cwd: folder.path, onSpawn: child => killAtStep(child, victim, 7) },
      );
      expect(killed.code).not.toBe(0);
      const runDir = onlyRun(runsDir);
      expect(existsSync(join(runDir, 'checkpoints', 'step-00000014'))).toBe(false);

      const resumed = await runCli(['resume', 'last', '--runs-dir', victim], { cwd: folder.path });
      expect(resumed.code, resumed.stderr).toBe(0);
      expect(finalWeights(runDir)).toEqual(finalWeights(reference));
      expect(metricsByStep(runDir)).toEqual(metricsByStep(reference));
      expect(readJson(join(runDir, 'run.json'))).toMatchObject({ state: 'succeeded', attempt: 2, exitCode: 0 });
    },
    120_000,
  );

  it('says so when it had already reached its total', async () => {
    const again = await runCli(['resume', 'last', '--runs-dir', 'reference'], { cwd: folder.path });
    expect(again.code, again.stderr).toBe(0);
    expect(again.stderr).toMatch(/already/i);
  });
});

describe('a child run', () => {
  it('goes on from an earlier step bit for bit, and leaves its parent alone', async () => {
    const before = snapshot(reference);
    const words = ['resume', 'last', '--runs-dir', 'reference'];
    const refused = await runCli([...words, '--set', 'student.optimizer.learningRate=1e-6'], { cwd: folder.path });
    expect(refused.code).toBe(2);
    expect(refused.stdout).toBe('');
    expect(refused.stderr.trim().split('\n')).toHaveLength(2);
    expect(refused.stderr).toMatch(/student\.optimizer\.learningRate cannot change.*\n.*student\.init/);

    const options = ['--from-step', '8', '--set', 'checkpoints.everySteps=null', '--json'];
    const done = await runCli([...words, ...options], { cwd: folder.path });
    expect(done.code, done.stderr).toBe(0);
    const { runDir } = JSON.parse(done.stdout) as { runDir: string };
    expect(runDir).not.toBe(reference);
    expect(snapshot(reference)).toEqual(before);
    expect(finalWeights(runDir)).toEqual(finalWeights(reference));
    const metrics = metricsByStep(reference);
    const later = Object.entries(metrics).filter(([step]) => Number.parseInt(step, 10) > 8);
    expect(metricsByStep(runDir)).toEqual(Object.fromEntries(later));
    expect(readJson(join(runDir, 'run.json'))).toMatchObject({ attempt: 1, parent: { step: 8 } });
    const list = await runCli(['runs', 'list', '--runs-dir', 'reference'], { cwd: folder.path });
    expect(list.stdout.split('\n')[0]).toMatch(/child of \d.* from step 8$/);
  });
});

/** Size and time of change of every file. */
const snapshot = (runDir: string): Readonly<Record<string, string>> =>
  Object.fromEntries(
    readdirSync(runDir, { recursive: true, encoding: 'utf8' })
      .map(name => [name, statSync(join(runDir, name))] as const)
      .filter(([, status]) => status.isFile())
      .map(([name, { size, mtimeMs }]) => [name, `${size} ${mtimeMs}`]),
  );

it('refuses a checkpoint with a missing shard or of another torch, and changes nothing', async () => {
  const killed = await runCli(
    ['distill', ...quickRun(steps), ...checkpointEvery, '--runs-dir', 'broken', '--format', 'ndjson'],
    { cwd: folder.path, onSpawn: child => killAtStep(child, 'sidecar', 7) },
  );
  expect(killed.code).toBe(4);
  const runDir = onlyRun(join(folder.path, 'broken'));
  const checkpoint = join(runDir, 'checkpoints', 'step-00000004');
  const manifest = join(checkpoint, 'manifest.json');
  const written = readFileSync(manifest, 'utf8');
  const before = readFileSync(join(runDir, 'run.json'), 'utf8');
  const refused = async (code: string, message: RegExp): Promise<void> => {
    const result = await runCli(['resume', 'last', '--runs-dir', 'broken'], { cwd: folder.path });
    expect(result.code, result.stderr).toBe(5);
    expect(result.stderr).toContain(code);
    expect(result.stderr).toMatch(message);
    expect(result.stderr.trim().split('\n')).toHaveLength(2);
    expect(readFileSync(join(runDir, 'run.json'), 'utf8')).toBe(before);
  };
  writeFileSync(manifest, written.replace(/"torch": "[^"]*"/, '"torch": "2.0.0"'));
  await refused('E_TORCH_DRIFT', /2\.0\.0[\s\S]*--allow-drift/);
  writeFileSync(manifest, written);
  const [shard = ''] = readdirSync(join(checkpoint, 'critic'));
  rmSync(join(checkpoint, 'critic', shard));
  await refused('E_CHECKPOINT_CORRUPT', /critic\/shard-.* is missing/);
});

/** Kills when the stream of events on stdout shows that `step` has been trained. */
function killAtStep(child: ChildProcess, victim: 'sidecar' | 'node' | 'both', step: number): void {
  let text = '';
  let done = false;
  child.stdout?.on('data', chunk => {
    text += String(chunk);
    const lines = text.split('\n').filter(line => line.includes('"type":"metric"'));
    if (done || !lines.some(line => Number(/"step":(\d+)/.exec(line)?.[1]) >= step)) return;
    done = true;
    const sidecars = childrenOf(child.pid ?? 0);
    if (victim !== 'node') for (const pid of sidecars) process.kill(pid, 'SIGKILL');
    if (victim !== 'sidecar') child.kill('SIGKILL');
  });
}
