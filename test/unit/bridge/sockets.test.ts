import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Dealer } from 'zeromq';
import { createEndpoint } from '../../../src/bridge/endpoint.ts';
import { sidecarEnvironment } from '../../../src/bridge/environment.ts';
import { createRequests } from '../../../src/bridge/requests.ts';
import { createSendQueue } from '../../../src/bridge/send-queue.ts';
import { bindSockets } from '../../../src/bridge/sockets.ts';

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-test-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

describe('the private folder', () => {
  test('is 0700, short enough for a socket, and goes when asked', async () => {
    const endpoint = await createEndpoint(folder);
    expect(statSync(endpoint.folder).mode & 0o777).toBe(0o700);
    await endpoint.remove();
    expect(existsSync(endpoint.folder)).toBe(false);
    const deep = join(folder, 'x'.repeat(120));
    mkdirSync(deep);
    const short = await createEndpoint(deep);
    expect(short.addresses.ctl.length).toBeLessThan(100);
    await short.remove();
  });

  test('folders of dead owners are swept, all others stay', async () => {
    const dead = spawnSync(process.execPath, ['-e', '']).pid;
    const names = [
      `rcm-bridge-${dead}-abc123`,
      `rcm-bridge-${process.pid}-abc123`,
      'rcm-bridge-notes',
      `other-${dead}-abc123`,
    ];
    for (const name of names) mkdirSync(join(folder, name));
    const endpoint = await createEndpoint(folder);
    await endpoint.remove();
    expect(readdirSync(folder).sort()).toEqual(names.slice(1).sort());
  });
});

describe('sockets', () => {
  test('a second pending send would throw; the queue sends all, in order', async () => {
    const sent: string[] = [];
    let busy = false;
    const send = createSendQueue({
      send: ([frame]) => {
        if (busy) throw new Error('EBUSY');
        busy = true;
        return new Promise((resolve, reject) => {
          setTimeout(() => {
            busy = false;
            sent.push(String(frame));
            if (frame === 'bad') reject(new Error('no'));
            else resolve();
          }, 1);
        });
      },
    });
    const results = await Promise.allSettled(['a', 'bad', 'b', 'c'].map(frame => send([frame])));
    expect(results.map(result => result.status)).toEqual(['fulfilled', 'rejected', 'fulfilled', 'fulfilled']);
    expect(sent).toEqual(['a', 'bad', 'b', 'c']);
  });

  test('many control messages at once reach the peer in order; a peer that is not there rejects', async () => {
    const endpoint = await createEndpoint(folder);
    const sockets = await bindSockets(endpoint.addresses);
    const dealer = new Dealer({ linger: 0 });
    try {
      dealer.connect(endpoint.addresses.ctl);
      await dealer.send('hi');
      const [identity] = (await sockets.receiveControl()) as [Uint8Array];
      const copy = Uint8Array.from(identity);
      await Promise.all(
        Array.from({ length: 200 }, (_, index) => sockets.sendControl(copy, [Buffer.from(`${index}`)])),
      );
      for (let index = 0; index < 200; index += 1) expect(String((await dealer.receive())[0])).toBe(`${index}`);
      await expect(sockets.sendControl(Buffer.from('nobody'), [copy])).rejects.toMatchObject({ code: 'EHOSTUNREACH' });
    } finally {
      dealer.close();
      sockets.close();
      await endpoint.remove();
    }
  });

  test('a receive that waits ends with undefined when the sockets are closed', async () => {
    const endpoint = await createEndpoint(folder);
    const sockets = await bindSockets(endpoint.addresses);
    const waiting = Promise.all([sockets.receiveControl(), sockets.receiveEvent(), sockets.receiveBlob()]);
    sockets.close();
    expect(await waiting).toEqual([undefined, undefined, undefined]);
    expect(await sockets.receiveEvent()).toBeUndefined();
    await endpoint.remove();
  });

  test('a bind that fails closes what was bound', async () => {
    await expect(
      bindSockets({
        ctl: `ipc://${join(folder, 'ctl')}`,
        evt: 'ipc:///nowhere/at/all',
        blob: `ipc://${join(folder, 'b')}`,
      }),
    ).rejects.toThrow();
  });
});

test('the sidecar sees what it needs and no secrets', () => {
  const env = { PATH: '/bin', AWS_SECRET_ACCESS_KEY: 'x', PYTHONPATH: '/evil', OMP_NUM_THREADS: '2', HF_TOKEN: 't' };
  const seen = sidecarEnvironment({ ...env, RCM_BRIDGE_HOME: '/home/cache' }, { EXTRA: '1' });
  expect(seen).toMatchObject({ PATH: '/bin', OMP_NUM_THREADS: '2', EXTRA: '1', PYTHONNOUSERSITE: '1' });
  expect(seen.PYTHONPYCACHEPREFIX).toBe(join('/home/cache', 'pycache'));
  expect(sidecarEnvironment({ PYTHONPYCACHEPREFIX: '/chosen' }).PYTHONPYCACHEPREFIX).toBe('/chosen');
  expect(Object.keys(seen)).not.toContain('AWS_SECRET_ACCESS_KEY');
  expect(Object.keys(seen)).not.toContain('PYTHONPATH');
});

test('requests: late, aborted and closed ones reject, an answer nobody waits for is ignored', async () => {
  const requests = createRequests();
  const send = (): Promise<void> => Promise.resolve();
  await expect(requests.add('status', send, { timeoutMs: 5 })).rejects.toMatchObject({ code: 'E_SIDECAR_HANG' });
  const controller = new AbortController();
  const aborted = requests.add('status', send, { signal: controller.signal });
  controller.abort('enough');
  await expect(aborted).rejects.toMatchObject({ code: 'E_ABORTED', cause: 'enough' });
  await expect(requests.add('status', () => Promise.reject(new Error('EHOSTUNREACH')))).rejects.toThrow('EHOSTUNREACH');
  requests.resolve('99', {});
  const waiting = requests.add('status', send);
  requests.close(new Error('gone'));
  await expect(waiting).rejects.toThrow('gone');
  await expect(requests.add('status', send)).rejects.toThrow('gone');
});
