import fs, { existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { RunEvent, RunHandle } from '../../src/index.ts';
import { readEvents, readLines, readMetrics } from '../../src/runs/journal.ts';
import { runIdPattern } from '../../src/runs/run-id.ts';
import { type ScriptedEvent, type TestBridge, testBridges, writeCheckpoint } from './fake-run.ts';
import { processLives } from './fake-sidecar.ts';

let bridges: TestBridge;

beforeEach(() => {
  bridges = testBridges();
});
afterEach(async () => {
  vi.restoreAllMocks();
  await bridges.clean();
});

const noGates = { set: { 'evaluation.gates': [] } };
const readJson = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8'));

async function collect(run: AsyncIterable<RunEvent>): Promise<RunEvent[]> {
  const events: RunEvent[] = [];
  for await (const event of run) events.push(event);
  return events;
}

/** A job that its own checks refuse. */
const refusal = (code: string): readonly ScriptedEvent[] => [
  { type: 'activity', body: { activity: 'loading', step: 0 } },
  {
    type: 'end',
    body: {
      state: 'failed',
      step: 0,
      studentUpdates: 0,
      criticUpdates: 0,
      checkpoint: null,
      exports: [],
      blobs: 0,
      error: { code, message: 'no', hint: 'do this', chain: [], traceback: '', step: null, details: {} },
    },
  },
];

/** Content of all files of a run that a refused resume has to leave alone. */
const snapshot = (runDir: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(runDir, { recursive: true, withFileTypes: true })
      .filter(entry => entry.isFile() && !entry.parentPath.endsWith('logs'))
      .map(entry => join(entry.parentPath, entry.name))
      .map(path => [path, readFileSync(path, 'utf8')]),
  );

async function until(run: RunHandle, type: RunEvent['type']): Promise<RunEvent> {
  for await (const event of run) if (event.type === type) return event;
  throw new Error(`no ${type}`);
}

describe('a run', () => {
  test('at a size the published weights were not made for says so once it has begun', async () => {
    const notices: string[] = [];
    const bridge = await bridges.open({ steps: 2 }, { onNotice: notice => notices.push(notice) });
    const shards = mkdtempSync(join(tmpdir(), 'rcm-shards-'));
    writeFileSync(join(shards, 'a.tar'), ''); // the sidecar, which would look inside, is a fake one
    const small = {
      'data.path': shards,
      'model.height': 240,
      'model.width': 416,
      'teacher.weights': 'builtin:digits-teacher',
      'compute.device': 'cpu',
    };
    await (await bridge.distill('wan2.1-t2v-1.3b-480p-rcm', { set: small })).result();
    expect(notices).toEqual([expect.stringMatching(/made for 480 x 832.*not 240 x 416/)]);
  });

  test('goes to its end and leaves the directory the contract describes', async () => {
    const bridge = await bridges.open({ steps: 30, metrics: 2, grids: 2 });
    const run = await bridge.distill('digits-rcm', { ...noGates, name: 'My Run'.replace(' ', '-') });
    expect(run.id).toMatch(runIdPattern);
    expect('then' in run).toBe(false);
    const events = await collect(run);
    const result = await run.result();

    expect(result).toMatchObject({ runId: run.id, state: 'succeeded', step: 30, exitCode: 0, scorecard: null });
    expect(run.state).toBe('succeeded');
    expect(events[0]).toMatchObject({ type: 'state', state: 'starting' });
    expect(events.at(-1)).toMatchObject({ type: 'end', state: 'succeeded', exitCode: 0 });
    expect(events.filter(event => event.type === 'metric')).toHaveLength(60);
    expect(events.filter(event => event.type === 'sample')).toHaveLength(2);

    const names = readdirSync(run.dir).sort();
    const expected = [
      'config.json',
      'environment.json',
      'events.ndjson',
      'inbox',
      'logs',
      'metrics.csv',
      'metrics.ndjson',
    ];
    expect(names).toEqual([...expected, 'report', 'run.json', 'samples'].sort());
    const record = readJson(run.dir, 'run.json');
    expect(record).toMatchObject({
      schema: 1,
      id: run.id,
      state: 'succeeded',
      attempt: 1,
      owner: { pid: process.pid, host: expect.any(String), startTime: expect.any(String) },
      progress: { step: 30, studentUpdates: 30, criticUpdates: 0 },
      exitCode: 0,
      error: null,
    });
    expect(Object.keys(record.times)).toEqual(['created', 'started', 'ended']);
    expect(readJson(run.dir, 'config.json')).toMatchObject({
      schema: 1,
      config: { name: 'My-Run' },
      origins: { name: { kind: 'flag' } },
    });
    expect(readJson(run.dir, 'environment.json')).toMatchObject({ torch: 'none', node: process.versions.node });
    const journal = readLines(join(run.dir, 'events.ndjson'));
    expect(journal.map(line => line.seq)).toEqual(journal.map((_, index) => index + 1));
    for (const line of journal) expect(line).toMatchObject({ schema: 1, attempt: 1, time: expect.any(Number) });
    expect(readMetrics(run.dir)).toHaveLength(60);
    expect(readFileSync(join(run.dir, 'report', 'index.html'), 'utf8')).toContain('succeeded');
    expect(readdirSync(join(run.dir, 'samples', 'step-00000000'))).toEqual(['preview-title.json', 'preview-title.png']);
  });

  test('ends in order although nobody reads it, and slow readers get gaps', async () => {
    const bridge = await bridges.open({ steps: 400, stepMs: 0, metrics: 5 });
    const run = await bridge.distill('digits-rcm', noGates);
    const slow = run.events({ types: ['metric'], buffer: 10 });
    await run.result();
    const events = await collect(slow);
    expect(events[0]).toMatchObject({ type: 'gap', lost: expect.any(Number) });
    expect(events.at(-1)?.type).toBe('end');
    const lost = events.flatMap(event => (event.type === 'gap' ? [event.lost] : []));
    expect(lost.length).toBe(1);
    expect(readMetrics(run.dir)).toHaveLength(2000);
  });

  test('that fails rejects only in result(), with the Python error as cause', async () => {
    const bridge = await bridges.open({ steps: 20, at: 5, fault: 'raise' });
    const run = await bridge.distill('digits-rcm', noGates);
    const events = await collect(run);
    expect(events.at(-1)).toMatchObject({ type: 'end', state: 'failed', error: { message: 'outer ü' } });
    const error = await run.result().catch(reason => reason);
    expect(error).toMatchObject({ name: 'RunFailedError', runId: run.id, runDir: run.dir, exitCode: 1 });
    expect(error.cause).toMatchObject({ name: 'PythonError', pythonType: 'ValueError' });
    expect(readJson(run.dir, 'run.json')).toMatchObject({ state: 'failed', exitCode: 1, error: { code: error.code } });
  });

  test('whose sidecar is killed has failed with E_SIDECAR_EXIT', async () => {
    const bridge = await bridges.open({ steps: 50, at: 5, fault: 'kill' });
    const run = await bridge.distill('digits-rcm', noGates);
    await expect(run.result()).rejects.toMatchObject({ code: 'E_SIDECAR_EXIT', exitCode: 4 });
    expect(readJson(run.dir, 'run.json')).toMatchObject({ state: 'failed', exitCode: 4 });
    expect(existsSync(join(run.dir, 'lock'))).toBe(false);
  });

  test('stops with a checkpoint on cancel and can be resumed from it', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 5 });
    const run = await bridge.distill('digits-rcm', noGates);
    await until(run, 'metric');
    expect(await run.cancel()).toEqual({ state: 'stopped' });
    const stopped = await run.result();
    expect(stopped).toMatchObject({ state: 'stopped', exitCode: 7 });
    expect(existsSync(join(stopped.checkpoint ?? '', 'manifest.json'))).toBe(true);
    expect(await run.cancel()).toEqual({ state: 'stopped' });
    await expect(run.pause()).rejects.toMatchObject({ code: 'E_RUN_ENDED' });

    let start: Record<string, unknown> = {};
    const other = await bridges.open({ steps: 5 }, {}, body => {
      start = body;
    });
    const again = await other.resume('last');
    expect(await again.result()).toMatchObject({ runId: run.id, state: 'succeeded' });
    expect(start).toMatchObject({ attempt: 2, resumeFrom: stopped.checkpoint, runId: run.id });
    const attempts = readLines(join(run.dir, 'events.ndjson')).map(line => line.attempt);
    expect(new Set(attempts)).toEqual(new Set([1, 2]));
    const seqs = readLines(join(run.dir, 'events.ndjson')).map(line => line.seq);
    expect(seqs).toEqual(seqs.map((_, index) => index + 1));

    const notices: string[] = [];
    const third = await bridges.open({}, { onNotice: notice => notices.push(notice) });
    const complete = await third.resume(run.id.slice(0, -2));
    expect(complete.wasComplete).toBe(true);
    expect(notices.join()).toMatch(/already reached/);
    expect(await complete.result()).toMatchObject({ state: 'succeeded', exitCode: 0 });
  });

  test('without a checkpoint stops within 100 ms of cancel', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 20 });
    const run = await bridge.distill('digits-rcm', noGates);
    await until(run, 'metric');
    const asked = performance.now();
    await run.cancel({ checkpoint: false });
    // The figure of 50 tries is printed by the long test; a single one may meet a busy machine.
    expect(performance.now() - asked).toBeLessThan(1_000);
    expect((await run.result()).checkpoint).toBeNull();
  });

  test('pauses, goes on, writes checkpoints and samples when asked', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    await run.pause();
    expect(run.state).toBe('paused');
    const { step, path } = await run.checkpoint();
    expect(path).toBe(join(run.dir, 'checkpoints', `step-${String(step).padStart(8, '0')}`));
    const sampled = until(run, 'sample');
    await run.sample({ num: 2 });
    expect(await sampled).toMatchObject({ kind: 'request' });
    await run.continue();
    expect(run.state).toBe('running');
    await run.cancel({ checkpoint: false });
  });

  test('is aborted by its signal: stopped on disk, E_ABORTED with the reason in result()', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 2 });
    const stop = new AbortController();
    const run = await bridge.distill('digits-rcm', { ...noGates, signal: stop.signal });
    const reason = new Error('enough');
    stop.abort(reason);
    await expect(run.result()).rejects.toMatchObject({ code: 'E_ABORTED', exitCode: 130, cause: reason });
    expect(readJson(run.dir, 'run.json')).toMatchObject({ state: 'stopped', exitCode: 7 });
    await expect(bridge.distill('digits-rcm', { signal: stop.signal })).rejects.toMatchObject({ code: 'E_ABORTED' });
  });

  test('is checkpointed and stopped by bridge.close(), and its process is gone', async () => {
    const bridge = await bridges.open({ steps: 50_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    await until(run, 'metric');
    const pids = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(' ').map(Number);
    await bridge.close();
    expect((await run.result()).checkpoint).not.toBeNull();
    expect(pids.some(processLives)).toBe(false);
    await expect(bridge.distill()).rejects.toMatchObject({ code: 'E_ABORTED' });
  });

  test('fails with E_DISK_FULL when no more can be written, and the process ends', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    await until(run, 'metric');
    vi.spyOn(fs, 'writeSync').mockImplementation(() => {
      throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
    });
    await expect(run.result()).rejects.toMatchObject({ code: 'E_DISK_FULL', exitCode: 3 });
    vi.restoreAllMocks();
    expect(readJson(run.dir, 'run.json')).toMatchObject({
      state: 'failed',
      exitCode: 3,
      error: { code: 'E_DISK_FULL' },
    });
  });
});

describe('starting', () => {
  test('checks config, then runs folder, then Python, and creates nothing when it refuses', async () => {
    const bridge = await bridges.open({});
    await expect(bridge.distill('digits-rcmm')).rejects.toMatchObject({ code: 'E_CONFIG_NOT_FOUND' });
    const file = join(bridges.folder, 'a-file');
    writeFileSync(file, '');
    const blocked = await bridges.open({}, { runsDir: file });
    await expect(blocked.distill('digits-rcmm')).rejects.toMatchObject({ code: 'E_CONFIG_NOT_FOUND' });
    await expect(blocked.distill()).rejects.toMatchObject({ code: 'E_RUNS_DIR', exitCode: 3 });
    await expect(bridge.distill('digits-rcm', { runDir: file })).rejects.toMatchObject({ code: 'E_RUN_DIR' });
    expect(existsSync(bridges.runsDir)).toBe(false);
  });

  test('refuses a folder that holds a run, unless it may resume it', async () => {
    const bridge = await bridges.open({ steps: 3 });
    const runDir = join(bridges.folder, 'mine');
    const run = await bridge.distill('digits-rcm', { ...noGates, runDir });
    await run.result();
    await expect(bridge.distill('digits-rcm', { runDir })).rejects.toMatchObject({
      code: 'E_RUN_EXISTS',
      hint: expect.stringContaining('resume'),
    });
    const again = await bridge.distill('digits-rcm', { runDir, ifExists: 'resume' });
    expect(again.wasComplete).toBe(true);
    expect((await bridge.runs.open('./mine')).id).toBe(run.id);
  });

  test('refuses what Python refuses before the first step, and leaves no folder', async () => {
    const bridge = await bridges.openScripted(refusal('E_WEIGHTS_KEYS'));
    await expect(bridge.distill('digits-rcm')).rejects.toMatchObject({ code: 'E_WEIGHTS_KEYS', exitCode: 5 });
    expect(readdirSync(bridges.runsDir)).toEqual([]);
  });

  test('leaves a run as it was when Python refuses to resume it', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    await until(run, 'metric');
    await run.cancel();
    await run.result();
    const before = snapshot(run.dir);
    const other = await bridges.openScripted(refusal('E_TORCH_DRIFT'));
    await expect(other.resume(run.id)).rejects.toMatchObject({ code: 'E_TORCH_DRIFT', exitCode: 5 });
    expect(snapshot(run.dir)).toEqual(before);
  });

  test('refuses another torch before it touches the run', async () => {
    const bridge = await bridges.open({ steps: 5_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    await until(run, 'metric');
    await run.cancel();
    const { checkpoint, step } = await run.result();
    writeCheckpoint(checkpoint ?? '', step, '2.13.0+cpu');
    const before = snapshot(run.dir);
    await expect(bridge.resume(run.id)).rejects.toMatchObject({ code: 'E_TORCH_DRIFT', exitCode: 5 });
    expect(snapshot(run.dir)).toEqual(before);
    const other = await bridges.open({ steps: 3 });
    expect(await (await other.resume(run.id, { allowDrift: true })).result()).toMatchObject({ state: 'succeeded' });
  });

  test('still fails a run whose job breaks after it has begun', async () => {
    const bridge = await bridges.openScripted([
      { type: 'activity', body: { activity: 'training', step: 0 } },
      ...refusal('E_TRAINING'),
    ]);
    const run = await bridge.distill('digits-rcm', noGates);
    await expect(run.result()).rejects.toMatchObject({ name: 'RunFailedError', code: 'E_TRAINING' });
    expect(existsSync(run.dir)).toBe(true);
  });

  test('plans without creating anything', async () => {
    const bridge = await bridges.open({});
    const plan = await bridge.dryRun('distill', 'digits-rcm', { steps: 7 });
    expect(plan).toMatchObject({ steps: 7, method: 'rcm', device: 'cpu', evaluationRows: 10 });
    expect(plan.text).toContain('launch.py');
    expect(existsSync(bridges.runsDir)).toBe(false);
  });
});

describe('runs of other owners', () => {
  test('are followed through their files and asked through their inbox', async () => {
    const bridge = await bridges.open({ steps: 50_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    const watcher = await bridges.open({});
    const seen = await watcher.runs.open(run.id);
    expect(seen.state).toBe('running');
    const events = collect(seen.events({ types: ['state', 'checkpoint'] }));
    const asked = performance.now();
    await seen.pause();
    expect(performance.now() - asked).toBeLessThan(2_000);
    expect(run.state).toBe('paused');
    const { path } = await seen.checkpoint();
    expect(existsSync(path)).toBe(true);
    await seen.continue();
    expect(await seen.cancel({ checkpoint: false })).toEqual({ state: 'stopped' });
    expect((await events).map(event => (event.type === 'state' ? event.state : event.type))).toEqual([
      'starting',
      'running',
      'paused',
      'checkpoint',
      'running',
      'stopping',
      'end',
    ]);
    expect(await seen.result()).toMatchObject({ state: 'stopped', exitCode: 7 });
    await expect(seen.pause()).rejects.toMatchObject({ code: 'E_RUN_ENDED' });
  });

  test('answer a request that makes no sense, within a second', async () => {
    const bridge = await bridges.open({ steps: 50_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    writeFileSync(
      join(run.dir, 'inbox', 'one.json'),
      JSON.stringify({ schema: 1, id: 'one', action: 'dance', args: {} }),
    );
    writeFileSync(join(run.dir, 'inbox', 'two.json'), 'no json');
    await vi.waitFor(
      () => {
        const answers = readLines(join(run.dir, 'events.ndjson')).filter(line => line.type === 'answer');
        expect(answers.map(line => [line.re, line.status]).sort()).toEqual([
          ['one', 'refused'],
          ['two', 'refused'],
        ]);
      },
      { timeout: 1_000 },
    );
    expect(readEvents(run.dir).every(event => (event.type as string) !== 'answer')).toBe(true);
    await run.cancel({ checkpoint: false });
  });

  test('cannot be resumed while their owner lives', async () => {
    const bridge = await bridges.open({ steps: 50_000, stepMs: 2 });
    const run = await bridge.distill('digits-rcm', noGates);
    const other = await bridges.open({});
    await expect(other.resume(run.id)).rejects.toMatchObject({ code: 'E_RUN_BUSY', exitCode: 2 });
    await run.cancel({ checkpoint: false });
  });
});
