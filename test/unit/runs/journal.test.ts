import { appendFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  createTail,
  journalName,
  metricsName,
  openJournal,
  readEvents,
  readLines,
  readMetrics,
} from '../../../src/runs/journal.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-journal-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const log = (message: string) => ({ type: 'log', level: 'info', message, fields: {} }) as const;

describe('the journal', () => {
  test('numbers entries over attempts and skips a line that a crash cut off', () => {
    const first = openJournal(folder, 1);
    first.write(log('a'));
    first.write({ type: 'answer', re: 'x', action: 'pause', status: 'accepted' });
    first.close();
    appendFileSync(join(folder, journalName), '{"schema":1,"seq":3,"type":"lo');
    const second = openJournal(folder, 2);
    second.write(log('b'));
    second.close();
    expect(readLines(join(folder, journalName)).map(({ seq, attempt }) => [seq, attempt])).toEqual([
      [1, 1],
      [2, 1],
      [3, 2],
    ]);
    expect(readEvents(folder).map(event => event.type)).toEqual(['log', 'log']);
  });

  test('keeps metrics exactly, also NaN, infinities and -0', () => {
    const number = fc.oneof(
      fc.double(),
      fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY),
    );
    fc.assert(
      fc.property(fc.dictionary(fc.stringMatching(/^[a-z]+\/[a-z_]+$/), number), fc.nat(), (values, step) => {
        rmSync(join(folder, metricsName), { force: true });
        const journal = openJournal(folder, 1);
        journal.metric({ type: 'metric', attempt: 1, step, phase: 'student', time: 1.5, values });
        journal.close();
        // JSON writes -0 as 0.
        const expected = Object.fromEntries(
          Object.entries(values).map(([name, value]) => [name, value === 0 ? 0 : value]),
        );
        expect(readMetrics(folder)).toEqual([
          { type: 'metric', attempt: 1, step, phase: 'student', time: 1.5, values: expected },
        ]);
      }),
      { numRuns: 50 },
    );
  });

  test('writes the line the contract shows', () => {
    const journal = openJournal(folder, 2);
    const values = { 'scm/loss': 99.8, 'scm/g_norm': Number.NaN };
    journal.metric({ type: 'metric', attempt: 2, step: 1200, phase: 'student', time: 1763836621.4, values });
    journal.close();
    expect(readLines(join(folder, metricsName))).toEqual([
      {
        schema: 1,
        attempt: 2,
        step: 1200,
        phase: 'student',
        time: 1763836621.4,
        values: { 'scm/loss': 99.8, 'scm/g_norm': 'NaN' },
      },
    ]);
  });

  test('is followed line by line, however its bytes arrive', () => {
    const path = join(folder, 'f.ndjson');
    const lines = ['{"a":"ü"}', '{"a":"😀"}', 'broken', '{"a":"c"}'];
    const bytes = Buffer.from(`${lines.join('\n')}\n`);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: bytes.length })), cuts => {
        rmSync(path, { force: true });
        const tail = createTail(path);
        const seen: unknown[] = [...tail()];
        const ends = [...new Set([...cuts, bytes.length])].sort((a, b) => a - b);
        let from = 0;
        for (const end of ends) {
          appendFileSync(path, bytes.subarray(from, end));
          from = end;
          seen.push(...tail());
        }
        expect(seen).toEqual([{ a: 'ü' }, { a: '😀' }, { a: 'c' }]);
      }),
      { numRuns: 50 },
    );
  });
});
