import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { defaultBudgets, type Hang, sidecarExitError } from '../../src/bridge/index.ts';
import { type Fake, holdsWithin, processLives, startFake } from './fake-sidecar.ts';
import { groupMembers, killParent } from './orphans.ts';

let fake: Fake | undefined;

afterEach(async () => {
  fake?.sidecar.kill();
  await fake?.close();
  fake = undefined;
});

describe('a sidecar that dies is noticed by its exit', () => {
  test.each([
    ['segfault', { code: null, signal: 'SIGSEGV' }],
    ['kill', { code: null, signal: 'SIGKILL' }],
    ['exit0', { code: 0, signal: null }],
  ])('%s', async (fault, how) => {
    fake = await startFake();
    await fake.run({ steps: 1000, stepMs: 5, at: 30, fault });
    const waiting = fake.sidecar.request('run.checkpoint', { reason: 'never' }).catch((error: unknown) => error);
    const exit = await fake.sidecar.exited;
    expect(exit).toMatchObject(how);
    expect(exit.error).toBeUndefined();
    expect(sidecarExitError(exit)).toMatchObject({ code: 'E_SIDECAR_EXIT', exitCode: 4 });
    if (fault === 'segfault') expect(exit.stderrTail).toMatch(/Segmentation fault[\s\S]*fake_sidecar\.py/);
    await waiting;
    await expect(fake.sidecar.request('status', {})).rejects.toMatchObject({ code: 'E_SIDECAR_EXIT' });
    expect(groupMembers(fake.sidecar.pid)).toEqual([]);
  });
});

describe('a sidecar that hangs is dumped and killed', () => {
  test.each([
    ['gil', 'noHeartbeat', { noHeartbeatMs: 2_000 }],
    ['stop', 'noHeartbeat', { noHeartbeatMs: 2_000 }],
    ['stall', 'noStep', { trainingMs: 1_500 }],
  ] as const)('%s', async (fault, kind, budget) => {
    const hangs: Hang[] = [];
    fake = await startFake({ budgets: { ...defaultBudgets, ...budget }, onHang: hang => hangs.push(hang) });
    await fake.run({ steps: 1000, stepMs: 10, at: 20, fault });
    const exit = await fake.sidecar.exited;
    expect(exit).toMatchObject({ signal: 'SIGKILL', error: { code: 'E_SIDECAR_HANG' } });
    expect(hangs).toMatchObject([{ kind, activity: 'training' }]);
    // A stopped process cannot print; the others show where they hang, with the interpreter lock held too.
    if (fault !== 'stop') expect(hangs[0]?.stack).toMatch(/fake_sidecar\.py", line \d+ in (hold_lock|fault)/);
  });
});

test('a job that ignores a cancel is killed after the deadline', async () => {
  fake = await startFake();
  await fake.run({ steps: 1000, stepMs: 5, at: 5, fault: 'gil' });
  await fake.event('log');
  await new Promise(resolve => setTimeout(resolve, 200));
  fake.sidecar.request('run.cancel', { checkpoint: true, deadlineMs: 300 }).catch(() => undefined);
  const exit = await fake.sidecar.exited;
  expect(exit).toMatchObject({ signal: 'SIGKILL', error: { code: 'E_SIDECAR_HANG' } });
});

test('10 MB on stderr neither block the job nor grow the tail, and all of it is in the log file', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'rcm-test-'));
  const stderrFile = join(folder, 'sidecar.log');
  fake = await startFake({ stderrFile });
  await fake.run({ steps: 3, at: 2, fault: 'stderr' });
  expect((await fake.event('end')).body.state).toBe('succeeded');
  await fake.sidecar.stop();
  const { stderrTail } = await fake.sidecar.exited;
  expect(stderrTail.length).toBeLessThanOrEqual(64 * 1024);
  await expect.poll(() => statSync(stderrFile).size).toBe(160 * 65_536);
  rmSync(folder, { recursive: true });
});

test('children of a job are gone when the sidecar is killed', async () => {
  fake = await startFake();
  const pidFile = join(fake.folder, 'pid');
  await fake.run({ steps: 1000, stepMs: 5, at: 2, fault: 'grandchild', pidFile });
  await fake.event('progress', event => event.body.step > 2);
  const pid = Number(readFileSync(pidFile, 'utf8'));
  expect(processLives(pid)).toBe(true);
  process.kill(fake.sidecar.pid, 'SIGKILL');
  await fake.sidecar.exited;
  expect(await holdsWithin(() => !processLives(pid), 2_000)).toBe(true);
});

describe('after SIGKILL of Node nothing of the sidecar is left after a second', () => {
  test.each([
    ['training', { at: 2, fault: 'nothing' }],
    ['holding the interpreter lock', { at: 2, fault: 'gil' }],
    ['ignoring SIGTERM', { at: 2, fault: 'ignore-term' }],
    ['with a child of its own', { at: 2, fault: 'grandchild', pidFile: 'pid' }],
  ])('%s', async (_, script) => {
    expect(await killParent({ steps: 100_000, stepMs: 5, ...script }, 200)).toBeLessThan(1_000);
  });
});
