import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { RunHandle } from '../../src/index.ts';
import { isEndState, readRecord, readSettledRecord } from '../../src/runs/record.ts';
import { cliEnvironment } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { fixtures } from '../python.ts';
import { onlyRun } from '../run-files.ts';
import { holdsWithin, processLives } from './fake-sidecar.ts';
import { type OwnerProcesses, ownerOf, ownerProcesses } from './owner-processes.ts';

let owners: OwnerProcesses;

beforeEach(async () => {
  owners = await ownerProcesses();
});
afterEach(() => owners.clean());

const noGates = { set: { 'evaluation.gates': [] } };
const endless = { steps: 50_000, stepMs: 5 };

/** Signals a process as soon as its one run has a record. */
function signalWhenCreated(child: ChildProcess, signal: NodeJS.Signals): void {
  const timer = setInterval(() => {
    const [runDir] = owners.runs();
    if (!runDir || !readRecord(runDir)) return;
    clearInterval(timer);
    child.kill(signal);
  }, 20);
  child.once('exit', () => clearInterval(timer));
}

describe('a starter that ends before the run is accepted', () => {
  test('by its signal: E_ABORTED, and the run is stopped', async () => {
    const bridge = await owners.open({ ...endless, loadMs: 60_000 });
    const stop = new AbortController();
    const reason = new Error('enough');
    const onCreated = (): void => stop.abort(reason);
    const started = bridge.distill('digits-rcm', { ...noGates, detached: true, signal: stop.signal, onCreated });
    await expect(started).rejects.toMatchObject({ code: 'E_ABORTED', exitCode: 130, cause: reason });
    expect(readRecord(onlyRun(owners.runsDir))).toMatchObject({ state: 'stopped', exitCode: 7 });
  });

  test('by Ctrl-C: the run is stopped and its owner ends', async () => {
    const onSpawn = (child: ChildProcess): void => signalWhenCreated(child, 'SIGINT');
    const ended = await owners.cli(['distill', '--detach'], { ...endless, loadMs: 60_000 }, { onSpawn });
    expect(ended).toMatchObject({ code: null, signal: 'SIGINT', stdout: '' });
    const runDir = onlyRun(owners.runsDir);
    expect(await holdsWithin(() => !processLives(ownerOf(runDir)), 10_000)).toBe(true);
    expect(readRecord(runDir)).toMatchObject({ state: 'stopped', exitCode: 7 });
  });

  test('by SIGKILL at any time: the run is stopped or goes on to its end, and no owner is left', async () => {
    const argument = JSON.stringify({ runsDir: owners.runsDir, python: owners.python({ steps: 20, loadMs: 300 }) });
    const ends: string[] = [];
    for (let attempt = 0; attempt < 12; attempt++) {
      const parent = spawn(process.execPath, [join(fixtures, 'detaching-parent.mjs'), argument], {
        env: cliEnvironment(owners.folder),
        stdio: 'ignore',
      });
      const known = new Set(owners.runs());
      await new Promise(resolve => setTimeout(resolve, 300 + attempt * 150));
      const children = childrenOf(parent.pid ?? 0);
      parent.kill('SIGKILL');
      expect(await holdsWithin(() => !children.some(processLives), 15_000)).toBe(true);
      for (const runDir of owners.runs().filter(path => !known.has(path))) {
        const record = readSettledRecord(runDir);
        if (!record) continue;
        ends.push(record.state);
        expect(isEndState(record.state)).toBe(true);
        expect(['succeeded', 'stopped']).toContain(record.state);
      }
    }
    process.stdout.write(`ends of runs whose starter was killed: ${JSON.stringify(ends)}\n`);
    expect(ends).toContain('succeeded');
  }, 300_000);
});

describe('an owner that is lost before the run is accepted', () => {
  test('rejects with E_OWNER_GONE and leaves no process', async () => {
    const bridge = await owners.open({ ...endless, loadMs: 60_000 });
    let processes: readonly number[] = [];
    const onCreated = ({ dir }: RunHandle): void => {
      const owner = ownerOf(dir);
      processes = [owner, ...childrenOf(owner)];
      process.kill(owner, 'SIGKILL');
    };
    const started = bridge.distill('digits-rcm', { ...noGates, detached: true, onCreated });
    await expect(started).rejects.toMatchObject({ code: 'E_OWNER_GONE', exitCode: 4 });
    expect(await holdsWithin(() => !processes.some(processLives), 1_000)).toBe(true);
  });

  test('because a function of the caller throws: rejects with that error', async () => {
    const bridge = await owners.open({ ...endless, loadMs: 60_000 });
    const mistake = new Error('a mistake');
    const onCreated = (): void => {
      throw mistake;
    };
    await expect(bridge.distill('digits-rcm', { ...noGates, detached: true, onCreated })).rejects.toBe(mistake);
    expect(processLives(ownerOf(onlyRun(owners.runsDir)))).toBe(false);
  });
});

describe('a run of another terminal', () => {
  test('is stopped by `runs cancel` and ends with 7', async () => {
    const running = owners.cli(['distill', '--no-progress'], endless);
    expect(await holdsWithin(() => readRecord(owners.runs()[0] ?? '')?.state === 'running', 20_000)).toBe(true);
    const cancelled = await owners.cli(['runs', 'cancel', 'last', '--json'], {});
    const runDir = onlyRun(owners.runsDir);
    expect(cancelled.code, cancelled.stderr).toBe(0);
    expect(JSON.parse(cancelled.stdout)).toEqual({ schema: 1, id: readRecord(runDir)?.id, state: 'stopped' });
    expect((await running).code).toBe(7);
    expect(readRecord(runDir)).toMatchObject({ state: 'stopped', exitCode: 7 });
  });

  test('a detached one ends with a checkpoint at SIGTERM, and can be resumed', async () => {
    const bridge = await owners.open(endless);
    const run = await bridge.distill('digits-rcm', { ...noGates, detached: true });
    const owner = ownerOf(run.dir);
    process.kill(owner, 'SIGTERM');
    const result = await run.result();
    expect(result).toMatchObject({ state: 'stopped', exitCode: 7 });
    expect(existsSync(join(result.checkpoint ?? '', 'manifest.json'))).toBe(true);
    expect(await holdsWithin(() => !processLives(owner), 2_000)).toBe(true);
    const resumed = await owners.cli(['resume', 'last', '--detach', '--json'], { steps: 5 });
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(JSON.parse(resumed.stdout)).toEqual({
      schema: 1,
      id: run.id,
      dir: run.dir,
      state: expect.any(String),
      commands: { show: `rcm-bridge runs show ${run.id}`, cancel: `rcm-bridge runs cancel ${run.id}` },
    });
    expect(await (await bridge.runs.open(run.id)).result()).toMatchObject({ state: 'succeeded' });
  });
});

describe('`--detach`', () => {
  test('refuses as without it: two lines, nothing on stdout, no folder', async () => {
    const refused = await owners.cli(['distill', '--detach'], { refuse: 'E_WEIGHTS_KEYS' });
    expect(refused).toMatchObject({ code: 5, stdout: '', stderr: 'E_WEIGHTS_KEYS: no such weights\ndo this\n' });
    expect(owners.runs()).toEqual([]);
  });

  test('names a run outside the default folder by its path', async () => {
    const words = ['distill', '--detach', '--json', '--run-dir', 'my run', '--set', 'evaluation.gates=[]'];
    const started = await owners.cli(words, { steps: 3 });
    expect(started.code, started.stderr).toBe(0);
    const { dir, commands } = JSON.parse(started.stdout);
    expect(dir).toBe(join(owners.folder, 'my run'));
    expect(commands.show).toBe(`rcm-bridge runs show '${dir}'`);
    expect(await holdsWithin(() => readRecord(dir)?.state === 'succeeded', 20_000)).toBe(true);
    expect(await holdsWithin(() => !processLives(ownerOf(dir)), 5_000)).toBe(true);
  });
});
