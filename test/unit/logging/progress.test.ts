import { describe, expect, test } from 'vitest';
import type { ProgressEvent, RunEvent } from '../../../src/index.ts';
import { eventLine } from '../../../src/logging/ndjson.ts';
import { createProgress, describeProgress, duration } from '../../../src/logging/progress.ts';

const event = (changes: Partial<ProgressEvent> = {}): ProgressEvent => ({
  type: 'progress',
  attempt: 1,
  time: 0,
  activity: 'training',
  step: 340,
  steps: 1050,
  phase: 'student',
  studentUpdates: 200,
  criticUpdates: 140,
  samplesPerSecond: 721.4,
  etaSeconds: 125,
  values: { 'critic/loss': 2.71, 'scm/loss': 93.21, 'scm/g_norm': 1 },
  ...changes,
});

const terminal = (isTTY: boolean, columns = 200) => {
  const written: string[] = [];
  return { written, stream: { isTTY, columns, write: (text: string) => written.push(text) } };
};

describe('progress', () => {
  test('says step, phase, losses, speed and time left', () => {
    expect(describeProgress(event())).toBe(
      'training step 340/1050 (student)  scm/loss 93.2  critic/loss 2.71  721 samples/s  2 min left',
    );
    expect(describeProgress(event({ activity: 'evaluating' }))).toBe('evaluating step 340/1050');
    expect(describeProgress(event({ values: {}, phase: null, samplesPerSecond: null, etaSeconds: null }))).toBe(
      'training step 340/1050',
    );
  });

  test('off a terminal is a line each 10 s and at each change of activity', () => {
    const { written, stream } = terminal(false);
    let now = 0;
    const progress = createProgress({ stream, enabled: true, env: {}, now: () => now });
    for (; now <= 25_000; now += 500) progress.show(event({ step: now }));
    progress.show(event({ activity: 'evaluating' }));
    progress.end();
    expect(written.map(line => /step (\d+)/.exec(line)?.[1])).toEqual(['0', '10000', '20000', '340']);
    expect(written.join('')).not.toContain('\u001b');
  });

  test('on a terminal renews one line that fits, and keeps notes', () => {
    const { written, stream } = terminal(true, 30);
    let now = 0;
    const progress = createProgress({ stream, enabled: true, env: {}, now: () => now });
    progress.show(event());
    progress.show(event({ step: 341 }));
    now = 1_000;
    progress.show(event({ step: 342 }));
    const alarm: RunEvent = { type: 'alarm', attempt: 1, time: 0, code: 'x', message: 'look', step: 342, details: {} };
    progress.show(alarm);
    progress.end();
    const text = written.join('');
    expect(text).not.toContain('341');
    expect(text).toContain('alarm at step 342: look\n');
    for (const line of text.replaceAll('\u001b[2K', '').split(/[\r\n]/)) expect(line.length).toBeLessThan(30);
    expect(text.endsWith('\n')).toBe(true);
  });

  test('in CI is plain, and disabled it is silent', () => {
    const plain = terminal(true);
    createProgress({ stream: plain.stream, enabled: true, env: { CI: '1' }, now: () => 0 }).show(event());
    expect(plain.written.join('')).toMatch(/^training.*\n$/);
    const silent = terminal(true);
    const progress = createProgress({ stream: silent.stream, enabled: false });
    progress.show(event());
    progress.end();
    expect(silent.written).toEqual([]);
  });

  test.each([
    [0, '0 s'],
    [59.4, '59 s'],
    [60, '1 min'],
    [3_600, '1 h 0 min'],
    [200_000, '2 d 7 h'],
    [Number.POSITIVE_INFINITY, 'unknown time'],
  ])('%s seconds are %s', (seconds, text) => expect(duration(seconds)).toBe(text));
});

describe('events for machines', () => {
  test('are one line each, with a schema, NaN as text', () => {
    const metric: RunEvent = {
      type: 'metric',
      attempt: 1,
      time: 2,
      step: 3,
      phase: 'student',
      values: { a: Number.NaN },
    };
    expect(eventLine(metric)).toBe(
      '{"schema":1,"type":"metric","attempt":1,"time":2,"step":3,"phase":"student","values":{"a":"NaN"}}\n',
    );
  });
});
