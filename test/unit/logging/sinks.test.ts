import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { csvName, openCsvSink } from '../../../src/logging/csv-sink.ts';
import { createLogger } from '../../../src/logging/logger.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'rcm-sinks-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test('metrics.csv has one header over several attempts and quotes what needs it', () => {
  for (const attempt of [1, 2]) {
    const sink = openCsvSink(folder);
    sink.write({
      type: 'metric',
      attempt,
      step: 10,
      phase: 'a,"b"',
      time: 1.5,
      values: { 'scm/loss': 2, x: Number.NaN },
    });
    sink.write({ type: 'metric', attempt, step: 20, phase: 'c', time: 2, values: {} });
    sink.close();
  }
  expect(readFileSync(join(folder, csvName), 'utf8').split('\n')).toEqual([
    'attempt,step,phase,time,name,value',
    '1,10,"a,""b""",1.5,scm/loss,2',
    '1,10,"a,""b""",1.5,x,NaN',
    '2,10,"a,""b""",1.5,scm/loss,2',
    '2,10,"a,""b""",1.5,x,NaN',
    '',
  ]);
});

test('a logger writes JSON lines from its level on', async () => {
  const lines: string[] = [];
  const logger = await createLogger({ write: line => lines.push(line) }, 'warn');
  logger.info({ step: 1 }, 'quiet');
  logger.warn({ step: 2 }, 'loud');
  expect(lines.map(line => JSON.parse(line))).toEqual([expect.objectContaining({ level: 40, step: 2, msg: 'loud' })]);
});
