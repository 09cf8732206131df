import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { RunHandle } from '../../src/index.ts';
import { readRecord } from '../../src/runs/record.ts';
import { cliEnvironment } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { fixtures } from '../python.ts';
import { onlyRun, readJson } from '../run-files.ts';
import { holdsWithin, processLives } from './fake-sidecar.ts';
import { type OwnerProcesses, ownerOf, ownerProcesses, sessionOf } from './owner-processes.ts';

let owners: OwnerProcesses;

beforeEach(async () => {
  owners = await ownerProcesses();
});
afterEach(() => owners.clean());

const noGates = { set: { 'evaluation.gates': [] } };
const endless = { steps: 50_000, stepMs: 5 };

async function reachStep(run: RunHandle): Promise<void> {
  for await (const event of run.events({ types: ['metric'] })) if (event.type === 'metric') return;
}

describe('a detached run', () => {
  test('has an owner in a session of its own, outlives its bridge, and is stopped through its inbox', async () => {
    const bridge = await owners.open(endless);
    const created: string[] = [];
    const run = await bridge.distill('digits-rcm', {
      ...noGates,
      detached: true,
      onCreated: ({ id }) => created.push(id),
    });
    const owner = ownerOf(run.dir);
    expect(created).toEqual([run.id]);
    expect(owner).not.toBe(process.pid);
    expect(sessionOf(owner)).toBe(owner);
    const words = readFileSync(`/proc/${owner}/cmdline`, 'utf8').split('\0').filter(Boolean);
    expect(words).toEqual([process.execPath, expect.stringMatching(/owner\.js$/)]);
    expect(readJson(join(run.dir, 'environment.json')).commandLine).toEqual(process.argv);
    await bridge.close();
    await reachStep(run);
    expect(run.state).toBe('running');

    const other = await owners.open({});
    await expect(other.resume(run.id, { detached: true })).rejects.toMatchObject({ code: 'E_RUN_BUSY', exitCode: 2 });
    const seen = await other.runs.open(run.id);
    expect(await seen.cancel()).toEqual({ state: 'stopped' });
    expect(await run.result()).toMatchObject({ state: 'stopped', exitCode: 7, runId: run.id });
    expect(await holdsWithin(() => !processLives(owner), 2_000)).toBe(true);
    expect(readFileSync(join(run.dir, 'logs', 'owner.log'), 'utf8')).toBe('');
  });

  test('goes on to its end when the process that started it is killed', async () => {
    const argument = JSON.stringify({ runsDir: owners.runsDir, python: owners.python({ steps: 60, stepMs: 10 }) });
    const parent = spawn(process.execPath, [join(fixtures, 'detaching-parent.mjs'), argument], {
      env: cliEnvironment(owners.folder),
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const runDir = await new Promise<string>((resolve, reject) => {
      parent.stdout.once('data', (line: Buffer) => resolve(line.toString().trim()));
      parent.once('exit', code => reject(new Error(`the parent ended with ${code}`)));
    });
    parent.kill('SIGKILL');
    const bridge = await owners.open({});
    const run = await bridge.runs.open(runDir);
    expect(await run.result()).toMatchObject({ state: 'succeeded', step: 60, exitCode: 0 });
    expect(parent.signalCode).toBe('SIGKILL');
  });

  test('leaves no process when its owner is killed, and can be taken over', async () => {
    const bridge = await owners.open(endless);
    const run = await bridge.pretrain('digits-rcm', { ...noGates, detached: true });
    await run.checkpoint();
    const owner = ownerOf(run.dir);
    const sidecars = childrenOf(owner);
    expect(sidecars.length).toBeGreaterThan(0);
    process.kill(owner, 'SIGKILL');
    expect(await holdsWithin(() => ![owner, ...sidecars].some(processLives), 1_000)).toBe(true);
    await expect(run.result()).rejects.toMatchObject({ code: 'E_OWNER_GONE', exitCode: 4 });

    const next = await owners.open({ steps: 5 });
    const again = await next.resume(run.id, { detached: true });
    expect(await again.result()).toMatchObject({ runId: run.id, state: 'succeeded' });
    expect(readRecord(run.dir)).toMatchObject({ attempt: 2, job: 'pretrain' });
    expect((await next.resume(run.id, { detached: true })).wasComplete).toBe(true);
  });
});

describe('starting a detached run', () => {
  test('rejects with the error of whoever refuses, and leaves nothing', async () => {
    const bridge = await owners.open({ refuse: 'E_WEIGHTS_KEYS' });
    const detached = { ...noGates, detached: true };
    await expect(bridge.distill('digits-rcmm', detached)).rejects.toMatchObject({ code: 'E_CONFIG_NOT_FOUND' });
    expect(existsSync(owners.runsDir)).toBe(false);
    const runDir = join(owners.folder, 'mine');
    await expect(bridge.distill('digits-rcm', { ...detached, runDir })).rejects.toMatchObject({
      name: 'PythonError',
      code: 'E_WEIGHTS_KEYS',
      exitCode: 5,
      message: 'no such weights',
      hint: 'do this',
      details: { path: 'x' },
      frames: expect.arrayContaining([expect.objectContaining({ function: 'run_job' })]),
    });
    expect(existsSync(runDir)).toBe(false);
    expect(childrenOf(process.pid).filter(pid => sessionOf(pid) === pid)).toEqual([]);
  });
});

describe('the command line', () => {
  test('prints the id of a detached run and how to go on with it', async () => {
    const started = await owners.cli(['distill', '--detach', '--set', 'evaluation.gates=[]'], endless);
    expect(started.code, started.stderr).toBe(0);
    expect(started.stderr).toBe('');
    const runDir = onlyRun(owners.runsDir);
    const { id } = readRecord(runDir) ?? {};
    expect(started.stdout.split('\n')).toEqual([
      id,
      `folder  ${runDir}`,
      `follow  rcm-bridge runs show ${id}`,
      `stop    rcm-bridge runs cancel ${id}`,
      '',
    ]);
    const cancelled = await owners.cli(['runs', 'cancel', String(id)], {});
    expect(cancelled, cancelled.stderr).toMatchObject({ code: 0, stdout: `${id} stopped\n` });
    expect(readRecord(runDir)).toMatchObject({ state: 'stopped', exitCode: 7 });
  });

  test('ends at once at a second Ctrl-C and leaves no process', async () => {
    let processes: readonly number[] = [];
    let signalled = 0;
    const onSpawn = (child: ChildProcess): void => {
      let text = '';
      child.stdout?.on('data', chunk => {
        text += String(chunk);
        if (signalled === 0 && text.includes('"type":"metric"')) {
          processes = childrenOf(child.pid ?? 0);
          signalled += 1;
          child.kill('SIGINT');
        }
      });
      child.stderr?.on('data', chunk => {
        if (!String(chunk).includes('once more')) return;
        signalled += 1;
        child.kill('SIGINT');
      });
    };
    const slow = { ...endless, checkpointMs: 20_000 };
    const started = performance.now();
    const ended = await owners.cli(['distill', '--format', 'ndjson'], slow, { onSpawn });
    expect(ended.code, ended.stderr).toBe(130);
    expect(signalled).toBe(2);
    expect(performance.now() - started).toBeLessThan(15_000);
    expect(processes.length).toBeGreaterThan(0);
    expect(await holdsWithin(() => !processes.some(processLives), 1_000)).toBe(true);
  });
});
