import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { takeLock } from '../../../src/runs/lock.ts';
import { heartbeatLimitMs, isAlive, processStartTime, thisOwner } from '../../../src/runs/owner.ts';
import {
  isEndState,
  type RunRecord,
  type RunState,
  readSettledRecord,
  transitions,
  writeRecord,
} from '../../../src/runs/record.ts';
import { newRunId, runIdPattern, stepName, stepOf } from '../../../src/runs/run-id.ts';
import { checkNewRunDir, checkRunsDir, findRun, listRuns } from '../../../src/runs/store.ts';

let runsDir: string;
beforeEach(() => {
  runsDir = mkdtempSync(join(tmpdir(), 'rcm-store-'));
});
afterEach(() => rmSync(runsDir, { recursive: true, force: true }));

const dead = { pid: 2 ** 22 + 1, startTime: 'gone', host: hostname() };

function addRun(id: string, changes: Partial<RunRecord> = {}): string {
  const dir = join(runsDir, id);
  mkdirSync(dir);
  const now = '2026-11-22T18:37:01.000Z';
  writeRecord(dir, {
    id,
    job: 'distill',
    state: 'succeeded',
    attempt: 1,
    owner: dead,
    heartbeat: now,
    times: { created: now, started: now, ended: null },
    progress: { step: 1, steps: 2, studentUpdates: 1, criticUpdates: 0 },
    exitCode: null,
    error: null,
    smoke: false,
    ...changes,
  });
  return dir;
}

describe('run ids', () => {
  test('hold UTC time, name and four base32 letters', () => {
    const id = newRunId('digits-rcm', new Date('2026-11-22T18:37:01.999Z'));
    expect(id).toMatch(/^20261122-183701-digits-rcm-[a-z2-7]{4}$/);
    expect(new Set(Array.from({ length: 50 }, () => newRunId('a'))).size).toBeGreaterThan(45);
  });

  test('are safe folder names whatever the config is called', () => {
    for (const name of ['../../etc', 'A b/c', '', '.hidden', 'ü'.repeat(300)])
      expect(newRunId(name)).toMatch(runIdPattern);
  });

  test('steps sort as text', () => {
    expect([stepName(350), stepOf('step-00000350'), stepOf('step-00000350.tmp')]).toEqual([
      'step-00000350',
      350,
      undefined,
    ]);
  });
});

describe('finding a run', () => {
  test('by id, unique prefix, path or last', () => {
    const times = (created: string) => ({ created, started: null, ended: null });
    const older = addRun('20261122-183701-digits-aaaa', { times: times('2026-11-22T18:37:01.000Z') });
    const newer = addRun('20261123-183701-digits-bbbb', { times: times('2026-11-23T18:37:01.000Z') });
    mkdirSync(join(runsDir, 'no-run'));
    expect(listRuns(runsDir).map(({ dir }) => dir)).toEqual([newer, older]);
    expect(findRun(runsDir, 'last', '/').dir).toBe(newer);
    expect(findRun(runsDir, '20261122', '/').dir).toBe(older);
    expect(findRun(runsDir, '20261123-183701-digits-bbbb', '/').dir).toBe(newer);
    expect(findRun('/nowhere', `./${'20261122-183701-digits-aaaa'}`, runsDir).dir).toBe(older);
    const missing = { code: 'E_RUN_NOT_FOUND', exitCode: 2 };
    expect(() => findRun(runsDir, '2026112', '/')).toThrow(
      expect.objectContaining({ ...missing, hint: expect.stringContaining('bbbb') }),
    );
    expect(() => findRun(runsDir, '20261123-183701-digits-bbbc', '/')).toThrow(
      expect.objectContaining({ ...missing, hint: 'Did you mean 20261123-183701-digits-bbbb?' }),
    );
    for (const name of ['', 'x', './no-run', '/nowhere/else']) {
      expect(() => findRun(runsDir, name, runsDir)).toThrow(expect.objectContaining(missing));
    }
    expect(() => findRun('/nowhere', 'last', '/')).toThrow(expect.objectContaining(missing));
  });

  test('a runs folder that is a file is refused, a missing one is empty', () => {
    const file = join(runsDir, 'file');
    writeFileSync(file, '');
    expect(listRuns('/nowhere/at/all')).toEqual([]);
    for (const use of [() => listRuns(file), () => checkRunsDir(file), () => checkRunsDir(join(file, 'runs'))]) {
      expect(use).toThrow(expect.objectContaining({ code: 'E_RUNS_DIR', exitCode: 3 }));
    }
    checkRunsDir(join(runsDir, 'not', 'yet'));
  });

  test('a new run needs an empty folder', () => {
    const dir = addRun('20261122-183701-digits-aaaa');
    expect(() => checkNewRunDir(dir)).toThrow(
      expect.objectContaining({ code: 'E_RUN_EXISTS', hint: expect.stringContaining('resume') }),
    );
    expect(() => checkNewRunDir(runsDir)).toThrow(expect.objectContaining({ code: 'E_RUN_DIR' }));
    expect(() => checkNewRunDir(join(dir, 'run.json'))).toThrow(
      expect.objectContaining({ code: 'E_RUN_DIR', exitCode: 2 }),
    );
    checkNewRunDir(join(runsDir, 'new'));
  });
});

describe('owners', () => {
  test('live by pid and start time on this host, by heartbeat on another', () => {
    expect(processStartTime(process.pid)).toBe(thisOwner().startTime);
    expect(isAlive(thisOwner(), null)).toBe(true);
    expect(isAlive({ ...thisOwner(), startTime: 'earlier' }, new Date().toISOString())).toBe(false);
    expect(isAlive(dead, new Date().toISOString())).toBe(false);
    const elsewhere = { ...thisOwner(), host: 'elsewhere' };
    expect(isAlive(elsewhere, new Date().toISOString())).toBe(true);
    expect(isAlive(elsewhere, new Date(Date.now() - heartbeatLimitMs - 1).toISOString())).toBe(false);
    expect(isAlive(elsewhere, null)).toBe(false);
  });

  test('that died leave a run that has failed, whatever run.json says', () => {
    const dir = addRun('20261122-183701-digits-aaaa', { state: 'running' });
    expect(readSettledRecord(dir)).toMatchObject({ state: 'failed', exitCode: 4, error: { code: 'E_OWNER_GONE' } });
    const alive = addRun('20261122-183701-digits-bbbb', { state: 'paused', owner: thisOwner() });
    expect(readSettledRecord(alive)).toMatchObject({ state: 'paused', error: null });
  });

  test('hold the lock alone; a dead or broken one is taken over', async () => {
    const lock = await takeLock(runsDir);
    await expect(takeLock(runsDir)).rejects.toMatchObject({ code: 'E_RUN_BUSY', exitCode: 2 });
    setTimeout(() => lock.release(), 80);
    (await takeLock(runsDir, 2_000)).release();
    for (const content of [JSON.stringify(dead), '']) {
      writeFileSync(join(runsDir, 'lock'), content);
      (await takeLock(runsDir)).release();
    }
  });

  test('of many that want a dead lock, exactly one gets it', async () => {
    writeFileSync(join(runsDir, 'lock'), JSON.stringify(dead));
    const tries = await Promise.allSettled(Array.from({ length: 10 }, () => takeLock(runsDir)));
    expect(tries.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
  });
});

describe('states', () => {
  test('end once, and every state can end', () => {
    for (const [state, next] of Object.entries(transitions) as [RunState, readonly RunState[]][]) {
      if (isEndState(state)) expect(next).toEqual([]);
      else expect(next).toEqual(expect.arrayContaining(['succeeded', 'stopped', 'failed']));
      expect(next).not.toContain('starting');
    }
  });
});
