import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { RunEvent } from '../../../src/index.ts';
import { createEventStream } from '../../../src/runs/event-stream.ts';

const metric = (step: number): RunEvent => ({
  type: 'metric',
  attempt: 1,
  time: 0,
  step,
  phase: 'student',
  values: {},
});
const progress = (step: number): RunEvent => ({
  type: 'progress',
  attempt: 1,
  time: 0,
  activity: 'training',
  step,
  steps: 9,
  phase: null,
  studentUpdates: 0,
  criticUpdates: 0,
  samplesPerSecond: null,
  etaSeconds: null,
  values: {},
});
const end: RunEvent = {
  type: 'end',
  attempt: 1,
  time: 0,
  state: 'succeeded',
  step: 9,
  studentUpdates: 9,
  criticUpdates: 0,
  exitCode: 0,
  checkpoint: null,
  exports: [],
  wallSeconds: 1,
};

const drain = async (events: AsyncIterable<RunEvent>): Promise<RunEvent[]> => {
  const seen: RunEvent[] = [];
  for await (const event of events) seen.push(event);
  return seen;
};

describe('readers of a run', () => {
  test('get everything, and loops end by themselves', async () => {
    const stream = createEventStream(1);
    const reader = stream.read();
    const seen = drain(reader);
    for (let step = 1; step <= 5; step++) {
      stream.publish(metric(step));
      await Promise.resolve();
    }
    stream.publish(end);
    stream.publish(metric(6));
    expect(await seen).toEqual([...[1, 2, 3, 4, 5].map(metric), end]);
  });

  test('lose the oldest when slow, and know how many', () => {
    return fc.assert(
      fc.asyncProperty(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 60 }), async (buffer, count) => {
        const stream = createEventStream(1);
        const reader = stream.read({ buffer });
        for (let step = 1; step <= count; step++) stream.publish(metric(step));
        stream.publish(end);
        const seen = await drain(reader);
        const lost = seen.reduce((sum, event) => sum + (event.type === 'gap' ? event.lost : 0), 0);
        const kept = seen.filter(event => event.type === 'metric').map(event => event.step);
        expect(lost + kept.length).toBe(count);
        expect(kept).toEqual(Array.from({ length: kept.length }, (_, index) => count - kept.length + 1 + index));
        expect(seen.length).toBeLessThanOrEqual(buffer + 1);
        expect(seen.at(-1)).toBe(end);
      }),
    );
  });

  test('see only the newest progress and only the types they asked for', async () => {
    const stream = createEventStream(1);
    const all = stream.read();
    const some = stream.read({ types: ['metric'] });
    for (const event of [progress(1), progress(2), metric(2), progress(3), end]) stream.publish(event);
    expect(await drain(all)).toEqual([progress(2), metric(2), progress(3), end]);
    expect(await drain(some)).toEqual([metric(2), end]);
  });

  test('may come late, leave early, and do not disturb each other', async () => {
    const stream = createEventStream(1);
    stream.publish(metric(1));
    for await (const event of stream.read({}, true)) {
      expect(event).toEqual(metric(1));
      break;
    }
    const fromStart = stream.read({}, true);
    const fromNow = stream.read();
    stream.publish(metric(2));
    stream.publish(end);
    expect(await drain(fromStart)).toEqual([metric(1), metric(2), end]);
    expect(await drain(fromNow)).toEqual([metric(2), end]);
    expect(await drain(stream.read())).toEqual([end]);
    const left = stream.read();
    await left.return?.();
    expect(await left.next()).toEqual({ done: true, value: undefined });
  });

  test('may ask for several events at once', async () => {
    const stream = createEventStream(1);
    const reader = stream.read();
    const asked = Promise.all([reader.next(), reader.next(), reader.next()]);
    stream.publish(metric(1));
    stream.publish(metric(2));
    stream.publish(end);
    expect((await asked).map(({ value }) => value)).toEqual([metric(1), metric(2), end]);
  });
});
