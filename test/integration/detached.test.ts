import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Bridge, RunHandle } from '../../src/index.ts';
import { createBridge } from '../../src/index.ts';
import { readRecord } from '../../src/runs/record.ts';
import { cliEnvironment, runCli, temporaryFolder } from '../cli.ts';
import { childrenOf } from '../processes.ts';
import { fixtures } from '../python.ts';
import { onlyRun, readJson } from '../run-files.ts';
import { holdsWithin, processLives } from './fake-sidecar.ts';
import { type ScriptedJob, writeScriptedPython } from './scripted-python.ts';

let folder: Awaited<ReturnType<typeof temporaryFolder>>;
let runsDir: string;
let interpreters: number;

beforeEach(async () => {
  folder = await temporaryFolder();
  runsDir = join(folder.path, 'runs');
  interpreters = 0;
});

afterEach(async () => {
  for (const name of existsSync(runsDir) ? readdirSync(runsDir) : []) await endOwner(join(runsDir, name));
  await folder.remove();
});

const noGates = { set: { 'evaluation.gates': [] } };
const endless = { steps: 50_000, stepMs: 5 };

const python = (script: ScriptedJob): string => {
  interpreters += 1;
  return writeScriptedPython(join(folder.path, `python-${interpreters}`), script);
};

const open = (script: ScriptedJob): Promise<Bridge> =>
  createBridge({
    cwd: folder.path,
    runsDir,
    python: python(script),
    env: { RCM_BRIDGE_HOME: join(folder.path, 'home') },
  });

const ownerOf = (runDir: string): number => readRecord(runDir)?.owner.pid ?? 0;

/** Owners outlive the test that started them: they are ended by pid, never this process. */
async function endOwner(runDir: string): Promise<void> {
  const pid = ownerOf(runDir);
  if (pid <= 1 || pid === process.pid || !processLives(pid)) return;
  process.kill(pid, 'SIGKILL');
  await holdsWithin(() => !processLives(pid), 2_000);
}

/** Field 6 of /proc/PID/stat. */
function sessionOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[3]);
}

async function reachStep(run: RunHandle): Promise<void> {
  for await (const event of run.events({ types: ['metric'] })) if (event.type === 'metric') return;
}

describe('a detached run', () => {
  test('has an owner in a session of its own, outlives its bridge, and is stopped through its inbox', async () => {
    const bridge = await open(endless);
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

    const other = await open({});
    await expect(other.resume(run.id, { detached: true })).rejects.toMatchObject({ code: 'E_RUN_BUSY', exitCode: 2 });
    const seen = await other.runs.open(run.id);
    expect(await seen.cancel()).toEqual({ state: 'stopped' });
    expect(await run.result()).toMatchObject({ state: 'stopped', exitCode: 7, runId: run.id });
    expect(await holdsWithin(() => !processLives(owner), 2_000)).toBe(true);
    expect(readFileSync(join(run.dir, 'logs', 'owner.log'), 'utf8')).toBe('');
  });

  test('goes on to its end when the process that started it is killed', async () => {
    const argument = JSON.stringify({ runsDir, python: python({ steps: 60, stepMs: 10 }) });
    const parent = spawn(process.execPath, [join(fixtures, 'detaching-parent.mjs'), argument], {
      env: cliEnvironment(folder.path),
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const runDir = await new Promise<string>((resolve, reject) => {
      parent.stdout.once('data', (line: Buffer) => resolve(line.toString().trim()));
      parent.once('exit', code => reject(new Error(`the parent ended with ${code}`)));
    });
    parent.kill('SIGKILL');
    const bridge = await open({});
    const run = await bridge.runs.open(runDir);
    expect(await run.result()).toMatchObject({ state: 'succeeded', step: 60, exitCode: 0 });
    expect(parent.signalCode).toBe('SIGKILL');
  });

  test('leaves no process when its owner is killed, and can be taken over', async () => {
    const bridge = await open(endless);
    const run = await bridge.pretrain('digits-rcm', { ...noGates, detached: true });
    await run.checkpoint();
    const owner = ownerOf(run.dir);
    const sidecars = childrenOf(owner);
    expect(sidecars.length).toBeGreaterThan(0);
    process.kill(owner, 'SIGKILL');
    expect(await holdsWithin(() => ![owner, ...sidecars].some(processLives), 1_000)).toBe(true);
    await expect(run.result()).rejects.toMatchObject({ code: 'E_OWNER_GONE', exitCode: 4 });

    const next = await open({ steps: 5 });
    const again = await next.resume(run.id, { detached: true });
    expect(await again.result()).toMatchObject({ runId: run.id, state: 'succeeded' });
    expect(readRecord(run.dir)).toMatchObject({ attempt: 2, job: 'pretrain' });
    expect((await next.resume(run.id, { detached: true })).wasComplete).toBe(true);
  });
});

describe('starting a detached run', () => {
  test('rejects with the error of whoever refuses, and leaves nothing', async () => {
    const bridge = await open({ refuse: 'E_WEIGHTS_KEYS' });
    const detached = { ...noGates, detached: true };
    await expect(bridge.distill('digits-rcmm', detached)).rejects.toMatchObject({ code: 'E_CONFIG_NOT_FOUND' });
    expect(existsSync(runsDir)).toBe(false);
    const runDir = join(folder.path, 'mine');
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

  test('is taken back by its signal', async () => {
    const bridge = await open(endless);
    const stop = new AbortController();
    const reason = new Error('enough');
    const onCreated = (): void => stop.abort(reason);
    const started = bridge.distill('digits-rcm', { ...noGates, detached: true, signal: stop.signal, onCreated });
    await expect(started).rejects.toMatchObject({ code: 'E_ABORTED', exitCode: 130, cause: reason });
    expect(readRecord(onlyRun(runsDir))).toMatchObject({ state: 'stopped', exitCode: 7 });
  });
});

describe('the command line', () => {
  const cli = (words: readonly string[], script: ScriptedJob) =>
    runCli(words, { cwd: folder.path, env: { RCM_BRIDGE_PYTHON: python(script) } });

  test('prints the id of a detached run and how to go on with it', async () => {
    const started = await cli(['distill', '--detach', '--set', 'evaluation.gates=[]'], endless);
    expect(started.code, started.stderr).toBe(0);
    expect(started.stderr).toBe('');
    const runDir = onlyRun(runsDir);
    const { id } = readRecord(runDir) ?? {};
    expect(started.stdout.split('\n')).toEqual([
      id,
      `folder  ${runDir}`,
      `follow  rcm-bridge runs show ${id}`,
      `stop    rcm-bridge runs cancel ${id}`,
      '',
    ]);
    const cancelled = await cli(['runs', 'cancel', String(id)], {});
    expect(cancelled, cancelled.stderr).toMatchObject({ code: 0, stdout: `${id} stopped\n` });

    const resumed = await cli(['resume', 'last', '--detach', '--json'], endless);
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(JSON.parse(resumed.stdout)).toEqual({
      schema: 1,
      id,
      dir: runDir,
      state: expect.stringMatching(/^(starting|running)$/),
      commands: { show: `rcm-bridge runs show ${id}`, cancel: `rcm-bridge runs cancel ${id}` },
    });
    expect(readRecord(runDir)).toMatchObject({ attempt: 2 });
  });

  test('refuses as without --detach: two lines, nothing on stdout, no folder', async () => {
    const refused = await cli(['distill', '--detach'], { refuse: 'E_WEIGHTS_KEYS' });
    expect(refused).toMatchObject({ code: 5, stdout: '', stderr: 'E_WEIGHTS_KEYS: no such weights\ndo this\n' });
    expect(existsSync(runsDir) ? readdirSync(runsDir) : []).toEqual([]);
  });
});
