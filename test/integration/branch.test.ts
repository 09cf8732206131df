import { appendFileSync, existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RunHandle } from '../../src/index.ts';
import { type TestBridge, testBridges, writeCheckpoint } from './fake-run.ts';

let bridges: TestBridge;
let parent: RunHandle;

const readJson = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8'));
const checkpoint = (runDir: string, step: number): string =>
  join(runDir, 'checkpoints', `step-${String(step).padStart(8, '0')}`);

/** Content of every file of a run. */
const snapshot = (runDir: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(runDir, { recursive: true, withFileTypes: true })
      .filter(entry => entry.isFile())
      .map(entry => join(entry.parentPath, entry.name))
      .map(path => [path, readFileSync(path, 'utf8')]),
  );

/** A run that has succeeded, with checkpoints of steps 2 and 4. No test changes it. */
beforeAll(async () => {
  bridges = testBridges();
  const bridge = await bridges.open({ steps: 5 });
  parent = await bridge.distill('digits-rcm', { set: { 'evaluation.gates': [], 'schedule.steps': 5 } });
  await parent.result();
  for (const step of [2, 4]) writeCheckpoint(checkpoint(parent.dir, step), step);
});
afterAll(() => bridges.clean());

describe('a child run', () => {
  test('goes on from a checkpoint of its parent, which stays as it is', async () => {
    const before = snapshot(parent.dir);
    const notices: string[] = [];
    let start: Record<string, unknown> = {};
    const options = { onNotice: (notice: string) => notices.push(notice) };
    const bridge = await bridges.open({ steps: 3 }, options, body => {
      start = body;
    });
    const child = await bridge.resume(parent.id, {
      fromStep: 2,
      set: ['schedule.steps=9', 'checkpoints.keepLast=7'],
    });
    expect(child.id).not.toBe(parent.id);
    expect(await child.result()).toMatchObject({ runId: child.id, state: 'succeeded' });
    expect(snapshot(parent.dir)).toEqual(before);
    expect(notices).toEqual([expect.stringContaining(`child of run ${parent.id}, from its step 2`)]);

    expect(start).toMatchObject({
      attempt: 1,
      runId: child.id,
      resumeFrom: checkpoint(child.dir, 2),
      config: { schedule: { steps: 9 }, checkpoints: { keepLast: 7 }, evaluation: { gates: [] } },
    });
    expect(readJson(child.dir, 'run.json')).toMatchObject({ attempt: 1, parent: { id: parent.id, step: 2 } });
    expect(readJson(child.dir, 'environment.json')).toMatchObject({ parent: { id: parent.id, step: 2 } });
    const { origins, source } = readJson(child.dir, 'config.json');
    expect(source).toBe('digits-rcm');
    expect(origins['schedule.steps']).toEqual({ kind: 'flag', where: '--set schedule.steps=9' });
    expect(origins['evaluation.gates']).toEqual(readJson(parent.dir, 'config.json').origins['evaluation.gates']);
    expect((await bridge.runs.list()).find(({ id }) => id === child.id)?.parent?.step).toBe(2);
  });

  test('shares the files of the checkpoint, so that neither run can take it from the other', async () => {
    const bridge = await bridges.open({ steps: 3 });
    const child = await bridge.resume(parent.dir, { fromStep: 4 });
    await child.result();
    const file = join(checkpoint(child.dir, 4), 'student.safetensors');
    expect(statSync(file).ino).toBe(statSync(join(checkpoint(parent.dir, 4), 'student.safetensors')).ino);
    expect(readFileSync(file, 'utf8')).toBe('weights of step 4');
  });

  test('takes the newest checkpoint when only settings are given, also from a run that still trains', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 5 });
    const living = await bridge.distill('digits-rcm', { set: { 'evaluation.gates': [] } });
    const step = await living.checkpoint();
    const other = await bridges.open({ steps: 3 });
    const child = await other.resume(living.id, { set: { 'schedule.steps': 100_000 } });
    await child.result();
    expect(readJson(child.dir, 'run.json').parent).toEqual({ id: living.id, step: step.step });
    expect(readJson(living.dir, 'run.json').state).toBe('running');
    await living.cancel({ checkpoint: false });
  });

  test.each([
    [{ set: ['student.optimizer.learningRate=1e-5'] }, 'E_CONFIG_FIXED', /student\.optimizer\.learningRate/],
    [{ set: ['seed=7'] }, 'E_CONFIG_FIXED', /^seed cannot change.*it is 0/],
    [{ set: { 'evaluation.samples': 50, method: 'scm' } }, 'E_CONFIG_FIXED', /^method/],
    [{ set: ['schedule.stepz=9'] }, 'E_CONFIG_UNKNOWN_KEY', /stepz/],
    [{ set: ['schedule.steps=3'], fromStep: 4 }, 'E_CONFIG_VALUE', /schedule\.steps is 3.*step 4/],
    [{ fromStep: 3 }, 'E_CHECKPOINT_MISSING', /no checkpoint of step 3/],
  ] as const)('is refused with %j, and nothing is created', async (options, code, message) => {
    const before = readdirSync(bridges.runsDir);
    const bridge = await bridges.open({});
    const refused = bridge.resume(parent.id, options);
    await expect(refused).rejects.toMatchObject({ code, message: expect.stringMatching(message) });
    await expect(refused).rejects.toMatchObject({ hint: expect.stringMatching(/./) });
    expect(readdirSync(bridges.runsDir)).toEqual(before);
  });

  test('is resumed as any other run, with its parent still named', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 5 });
    const child = await bridge.resume(parent.id, { set: ['schedule.steps=6000'] });
    await child.checkpoint();
    await child.cancel();
    await child.result();
    const other = await bridges.open({ steps: 5 });
    await (await other.resume(child.id)).result();
    expect(readJson(child.dir, 'run.json')).toMatchObject({ attempt: 2, parent: { id: parent.id } });
  });
});

describe('a run of Slurm', () => {
  test('has no child by submission, which would begin at step 0; it has one where it is told to start', async () => {
    const bridge = await bridges.open({ steps: 3 });
    const set = { 'compute.launcher': 'slurm' };
    await expect(bridge.resume(parent.id, { fromStep: 2, set })).rejects.toMatchObject({
      code: 'E_USAGE',
      message: expect.stringContaining(parent.id),
      hint: expect.stringContaining('--set compute.launcher=auto'),
    });
    expect(existsSync(join(bridges.folder, 'runs', '.slurm'))).toBe(false);
  });
});

describe('a damaged checkpoint', () => {
  test('is named, and the one before it offered', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 5 });
    const run = await bridge.distill('digits-rcm', { set: { 'evaluation.gates': [] } });
    const first = await run.checkpoint();
    await run.cancel();
    const { step } = await run.result();
    appendFileSync(join(checkpoint(run.dir, step), 'student.safetensors'), 'x');
    const other = await bridges.open({ steps: 5 });
    await expect(other.resume(run.id)).rejects.toMatchObject({
      code: 'E_CHECKPOINT_CORRUPT',
      message: expect.stringContaining(join(checkpoint(run.dir, step), 'student.safetensors')),
      hint: expect.stringContaining(`--from-step ${first.step}`),
    });
    expect(existsSync(join(run.dir, 'lock'))).toBe(false);
    const child = await other.resume(run.id, { fromStep: first.step });
    expect(await child.result()).toMatchObject({ state: 'succeeded' });
  });
});

describe('--if-exists resume', () => {
  const noGates = { 'evaluation.gates': [] };

  test('refuses another config where it would make another run, and tells where it would not', async () => {
    const notices: string[] = [];
    const bridge = await bridges.open({ steps: 3 }, { onNotice: notice => notices.push(notice) });
    const runDir = join(bridges.folder, 'mine');
    await (await bridge.distill('digits-rcm', { set: noGates, runDir })).result();
    const again = (set: Readonly<Record<string, unknown>>) =>
      bridge.distill('digits-rcm', { set: { ...noGates, ...set }, runDir, ifExists: 'resume' });

    await expect(again({ 'schedule.batchSize': 32 })).rejects.toMatchObject({
      code: 'E_CONFIG_FIXED',
      exitCode: 2,
      message: expect.stringMatching(/began with schedule\.batchSize=\d+, not 32/),
    });
    expect(notices).toEqual([]);
    expect((await again({})).wasComplete).toBe(true);
    expect(notices.filter(notice => notice.includes('its own'))).toEqual([]);
    expect((await again({ 'checkpoints.keepLast': 9 })).wasComplete).toBe(true);
    expect(notices.filter(notice => notice.includes('its own'))).toEqual([
      expect.stringContaining('its own checkpoints.keepLast'),
    ]);
  });
});
