/** metrics.csv: the lines of metrics.ndjson as a table, one number a row, for spreadsheets and data frames. */
import fs from 'node:fs';
import { join } from 'node:path';
import type { MetricEvent } from '../runs/events.ts';
import { openAppender } from '../runs/files.ts';

export const csvName = 'metrics.csv';
const header = 'attempt,step,phase,time,name,value\n';

/** Where metrics go besides metrics.ndjson. */
export interface MetricSink {
  write(event: MetricEvent): void;
  close(): void;
}

/** A long table rather than a wide one: phases have different metrics, and a file cannot gain columns later. */
export function openCsvSink(runDir: string): MetricSink {
  const path = join(runDir, csvName);
  const isNew = (fs.statSync(path, { throwIfNoEntry: false })?.size ?? 0) === 0;
  const file = openAppender(path);
  if (isNew) file.append(header);
  return {
    write: ({ attempt, step, phase, time, values }) => {
      const rows = Object.entries(values).map(([name, value]) => row([attempt, step, phase, time, name, value]));
      if (rows.length > 0) file.append(rows.join(''));
    },
    close: () => file.close(),
  };
}

const row = (cells: readonly (string | number)[]): string => `${cells.map(cell).join(',')}\n`;

/** RFC 4180: cells with a comma, a quote or a line end are quoted. */
function cell(value: string | number): string {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
