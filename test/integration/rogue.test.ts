import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { defaultBudgets, type Sidecar, type SidecarOptions, startSidecar } from '../../src/bridge/index.ts';
import type { SidecarEvent } from '../../src/protocol/index.ts';
import { fixtures, testPython } from '../python.ts';
import { holdsWithin, processLives, silentLogger } from './fake-sidecar.ts';

let folder = '';
let sidecar: Sidecar | undefined;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-test-'));
});

afterEach(async () => {
  sidecar?.kill();
  await sidecar?.exited;
  sidecar = undefined;
  rmSync(folder, { recursive: true, force: true });
});

const events: SidecarEvent[] = [];

async function startRogue(behaviour: string, options: Partial<SidecarOptions> = {}): Promise<Sidecar> {
  events.length = 0;
  sidecar = await startSidecar({
    python: testPython(),
    launchFile: join(fixtures, 'rogue_sidecar.py'),
    env: { ROGUE: behaviour },
    cwd: folder,
    logger: silentLogger,
    onEvent: event => {
      events.push(event);
    },
    onBlob: () => undefined,
    ...options,
  });
  return sidecar;
}

/** Folders of this process: none may be left by a start that failed. */
const socketFolders = (): string[] =>
  readdirSync(tmpdir()).filter(name => name.startsWith(`rcm-bridge-${process.pid}-`));

describe('a sidecar that cannot be started leaves nothing behind', () => {
  test.each([
    ['silent', { helloTimeoutMs: 400 }, 'E_SIDECAR_START', /did not say hello within 400 ms/],
    ['ignore-term', { helloTimeoutMs: 400 }, 'E_SIDECAR_START', /did not say hello/],
    ['never-ready', { readyTimeoutMs: 400 }, 'E_SIDECAR_START', /did not become ready within 400 ms/],
    ['die-early', {}, 'E_SIDECAR_START', /code 3 .*rogue: could not start/],
    ['wrong-token', {}, 'E_PROTOCOL', /wrong token/],
    ['protocol-99', {}, 'E_PROTOCOL', /speaks protocol 99-99, this package speaks 1-1/],
    ['other-schema', {}, 'E_PROTOCOL', /another protocol schema/],
    ['junk-first', {}, 'E_PROTOCOL', /envelope|cannot be read/],
    ['no-torch', {}, 'E_PYTHON_PACKAGES', /cannot import torch/],
  ] as const)('%s', async (behaviour, options, code, message) => {
    await expect(startRogue(behaviour, options)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(socketFolders()).toEqual([]);
  });

  test('a Python that does not exist', async () => {
    await expect(startRogue('silent', { python: join(folder, 'no-python') })).rejects.toMatchObject({
      code: 'E_SIDECAR_START',
      message: expect.stringMatching(/cannot be started.*ENOENT/),
    });
    expect(socketFolders()).toEqual([]);
  });

  test('a signal that has fired spawns nothing, one that fires ends it', async () => {
    await expect(startRogue('silent', { signal: AbortSignal.abort('early') })).rejects.toMatchObject({
      code: 'E_ABORTED',
      cause: 'early',
    });
    const controller = new AbortController();
    setTimeout(() => controller.abort('late'), 100);
    await expect(startRogue('silent', { signal: controller.signal })).rejects.toMatchObject({ cause: 'late' });
    expect(socketFolders()).toEqual([]);
  });
});

describe('a sidecar that breaks the protocol is killed and its exit says why', () => {
  test.each([
    ['junk-control', /cannot be read|envelope/],
    ['unknown-type', /unknown type "surprise"/],
    ['huge-control', /more than 4194304 bytes/],
    ['junk-event', /cannot be read|envelope/],
    ['bad-body', /log: .*extra/],
    ['gap', /Events 1 to 1 are missing/],
    ['repeat', /missing/],
  ] as const)('%s', async (behaviour, message) => {
    const { exited } = await startRogue(behaviour);
    const exit = await exited;
    expect(exit).toMatchObject({ signal: 'SIGKILL', error: { code: 'E_PROTOCOL' } });
    expect(exit.error?.message).toMatch(message);
    expect(socketFolders()).toEqual([]);
  });
});

test('a flood of events is taken in order and none is lost', async () => {
  const { kill } = await startRogue('flood');
  await expect.poll(() => events.length, { timeout: 20_000 }).toBe(20_000);
  expect(events.every((event, index) => event.seq === index)).toBe(true);
  kill();
});

test('events sent just before an exit are handled before the exit is told', async () => {
  const { exited } = await startRogue('leave');
  expect(await exited).toMatchObject({ code: 0, lastSeq: 499 });
});

test('no heartbeat: the bridge asks for the stacks, tells, and kills', async () => {
  const hangs: string[] = [];
  const { exited } = await startRogue('no-heartbeat', {
    budgets: { ...defaultBudgets, noHeartbeatMs: 300 },
    onHang: hang => hangs.push(hang.kind),
  });
  const exit = await exited;
  // The rogue has no faulthandler: the signal itself ends it, which is as final.
  expect(exit.signal === 'SIGUSR1' || hangs[0] === 'noHeartbeat').toBe(true);
});

test('children of a killed sidecar go with it', async () => {
  const { kill, exited } = await startRogue('grandchild');
  await expect.poll(() => events.length, { timeout: 10_000 }).toBe(1);
  const pid = events[0]?.type === 'log' ? Number(events[0].body.fields.pid) : 0;
  expect(processLives(pid)).toBe(true);
  kill();
  await exited;
  expect(await holdsWithin(() => !processLives(pid), 2_000)).toBe(true);
});
