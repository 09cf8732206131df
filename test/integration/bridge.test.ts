import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { isRcmBridgeError, PythonError } from '../../src/errors/index.ts';
import type { SidecarEvent } from '../../src/protocol/index.ts';
import { type Fake, startFake } from './fake-sidecar.ts';

let fake: Fake | undefined;

afterEach(async () => {
  await fake?.close();
  fake = undefined;
});

const metricSteps = (events: readonly SidecarEvent[]): number[] =>
  events.flatMap(event => (event.type === 'metric' ? event.body.items.map(item => item.step) : []));

describe('a sidecar that behaves', () => {
  test('runs a job and delivers every event in order', async () => {
    fake = await startFake();
    expect(fake.sidecar.hello.protocol).toEqual([1, 1]);
    expect(fake.sidecar.ready.torch).toBe('none');
    await fake.run({ steps: 50, metrics: 3 });
    const end = await fake.event('end');
    expect(end.body).toMatchObject({ state: 'succeeded', step: 50, blobs: 0, error: null });
    expect(fake.events.map(event => event.seq)).toEqual(fake.events.map((_, index) => index));
    expect(metricSteps(fake.events)).toEqual(Array.from({ length: 150 }, (_, index) => 1 + Math.floor(index / 3)));
    expect(fake.events.at(-2)).toMatchObject({ type: 'progress', body: { step: 50 } });
    expect(fake.events.every(event => event.run === 'run-1')).toBe(true);
  });

  test('serves further jobs until shutdown, one at a time', async () => {
    fake = await startFake();
    await fake.run({ steps: 1000, stepMs: 20 });
    await expect(fake.run({ steps: 1 })).rejects.toMatchObject({ code: 'E_RUN_BUSY' });
    await fake.sidecar.request('run.cancel', { checkpoint: false, deadlineMs: 5_000 });
    expect((await fake.event('end')).body.state).toBe('stopped');
    await fake.run({ steps: 3 });
    expect((await fake.event('end', event => event.body.state === 'succeeded')).body.step).toBe(3);
    await expect(fake.sidecar.request('run.pause', {})).rejects.toMatchObject({ code: 'E_RUN_ENDED' });
    await fake.sidecar.stop();
    expect(await fake.sidecar.exited).toMatchObject({ code: 0, signal: null });
  });

  test('joins metrics into at most one message each 100 ms and loses none', async () => {
    fake = await startFake();
    await fake.run({ steps: 300, stepMs: 2, metrics: 20 });
    await fake.event('end');
    expect(metricSteps(fake.events)).toHaveLength(6000);
    const batches = fake.events.filter(event => event.type === 'metric');
    // The first and the last (before `end`) may come early; all others are at least 100 ms apart.
    const gaps = batches.slice(1, -1).map((event, index) => event.time - batches[index]!.time);
    expect(Math.min(...gaps)).toBeGreaterThan(0.095);
  });

  test('writes a checkpoint on request and answers when it is on disk', async () => {
    fake = await startFake();
    await fake.run({ steps: 10_000, stepMs: 5, checkpointMs: 30 });
    const value = await fake.sidecar.request('run.checkpoint', { reason: 'asked' });
    const event = await fake.event('checkpoint');
    expect(event.body).toEqual({ step: value.step, path: value.path, bytes: 5e9, seconds: 0.5, reason: 'asked' });
    await fake.sidecar.request('run.cancel', { checkpoint: true, deadlineMs: 10_000 });
    expect((await fake.event('end')).body.checkpoint).toMatch(/^checkpoints\/step-\d{8}$/);
  });

  test('stands still while paused, serves requests meanwhile, and goes on', async () => {
    fake = await startFake();
    await fake.run({ steps: 10_000, stepMs: 5 });
    await fake.sidecar.request('run.pause', {});
    const { step } = (await fake.event('paused')).body;
    const { step: sampled } = await fake.sidecar.request('run.sample', { steps: 4, num: 1, seed: 0, label: null });
    expect(sampled).toBe(step);
    await expect(fake.sidecar.request('run.sample', { steps: 4, num: 0, seed: 0, label: null })).rejects.toThrow(
      'no samples asked for',
    );
    expect(await fake.sidecar.request('status', {})).toMatchObject({ job: 'distill', step: step - 1 });
    await fake.sidecar.request('run.continue', {});
    expect((await fake.event('continued')).body.step).toBe(step);
    await fake.event('progress', event => event.body.step > step + 2);
  });

  test('a paused job can be cancelled', async () => {
    fake = await startFake();
    await fake.run({ steps: 10_000, stepMs: 5 });
    await fake.sidecar.request('run.pause', {});
    await fake.event('paused');
    await fake.sidecar.request('run.cancel', { checkpoint: false, deadlineMs: 10_000 });
    expect((await fake.event('end')).body.state).toBe('stopped');
  });

  test('sends grids as tensors and counts them in end', async () => {
    fake = await startFake();
    await fake.run({ steps: 2, grids: 5 });
    const end = await fake.event('end');
    expect(end.body.blobs).toBe(5);
    await expect.poll(() => fake?.blobs.length).toBe(5);
    const { body, tensors, run } = fake.blobs[0]!;
    expect(run).toBe('run-1');
    expect(body).toEqual({ step: 0, kind: 'preview', title: 'title', rows: ['a', 'b'], columns: ['1', '2', '3'] });
    expect(tensors.pixels).toMatchObject({ dtype: 'u8', shape: [2, 3, 4, 5, 1] });
    expect([...tensors.pixels!.bytes]).toEqual(Array.from({ length: 120 }, (_, index) => index));
  });

  test('a handler that is slow stalls nothing in Python and gets every event', async () => {
    fake = await startFake({ onEvent: () => new Promise(resolve => setTimeout(resolve, 5)) });
    const started = performance.now();
    await fake.run({ steps: 400, stepMs: 1, metrics: 5 });
    const end = await fake.event('end');
    expect(metricSteps(fake.events)).toHaveLength(2000);
    expect(end.time * 1000 - (Date.now() - (performance.now() - started))).toBeLessThan(10_000);
  });

  test('events Node does not read go to a file after a while and come back from it in order', async () => {
    let release: () => void = () => undefined;
    const held = new Promise<void>(resolve => {
      release = resolve;
    });
    fake = await startFake({ env: { FAKE_STALL_SECONDS: '0.3' }, onEvent: () => held });
    await fake.run({ steps: 12_000, stepMs: 0, checkpointMs: 0, metrics: 1, chatty: true });
    const file = join(fake.folder, 'undelivered.msgpack');
    await expect.poll(() => existsSync(file) && statSync(file).size, { timeout: 20_000 }).toBeGreaterThan(1000);
    release();
    const end = await fake.event('end');
    expect(end.body.state).toBe('succeeded');
    expect(metricSteps(fake.events)).toEqual(Array.from({ length: 12_000 }, (_, index) => index + 1));
    const logs = fake.events.flatMap(event => (event.type === 'log' ? [event.body.fields.step] : []));
    expect(logs).toEqual(Array.from({ length: 12_000 }, (_, index) => index + 1));
  });

  test('an error in the job crosses the border with its chain and frames', async () => {
    fake = await startFake();
    await fake.run({ steps: 5, at: 3, fault: 'raise' });
    const { error, state } = (await fake.event('end')).body;
    expect(state).toBe('failed');
    expect(error).toMatchObject({ code: 'E_TRAINING', message: 'outer ü', step: 2 });
    const python = new PythonError(error!);
    expect(python.pythonType).toBe('ValueError');
    expect(python.frames.at(-1)).toMatchObject({ function: 'fault', text: 'raise ValueError("outer ü") from error' });
    expect(python.cause).toMatchObject({ pythonType: 'KeyError' });
    expect(python.remoteStack).toContain('direct cause');
  });

  test('a handler that fails ends the sidecar and its error is the reason', async () => {
    fake = await startFake({
      onEvent: () => {
        throw new Error('disk on fire');
      },
    });
    await fake.run({ steps: 1000, stepMs: 10 });
    const exit = await fake.sidecar.exited;
    expect(exit.signal).toBe('SIGKILL');
    expect(isRcmBridgeError(exit.error)).toBe(true);
    expect(exit.error?.message).toContain('disk on fire');
  });

  test('stop may be called from a handler', async () => {
    fake = await startFake({
      onEvent: async event => {
        if (event.type === 'end') await fake?.sidecar.stop();
      },
    });
    await fake.run({ steps: 2 });
    expect(await fake.sidecar.exited).toMatchObject({ code: 0 });
  });
});
