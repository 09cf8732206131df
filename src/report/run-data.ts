/** What a report shows of one run, read from its directory. */
import fs from 'node:fs';
import { join } from 'node:path';
import type { Gate } from '../evaluation/gates.ts';
import { readScorecard, type Scorecard } from '../evaluation/scorecard.ts';
import type { MetricEvent } from '../runs/events.ts';
import { readMetrics } from '../runs/journal.ts';
import { hasGates, type RunRecord, readSettledRecord } from '../runs/record.ts';
import { samplesName } from '../runs/sample-files.ts';
import { type PhaseProfile, profilesOf } from './profile.ts';

export interface Series {
  readonly name: string;
  /** By step, ascending. */
  readonly points: readonly (readonly [step: number, value: number])[];
}

export interface ReportGrid {
  readonly step: number;
  readonly kind: string;
  readonly title: string;
  readonly rows: readonly string[];
  readonly columns: readonly string[];
  readonly tile: { readonly width: number; readonly height: number; readonly gap: number };
  /** data: URI of the PNG. */
  readonly image: string;
}

export interface RunData {
  readonly record: RunRecord;
  readonly config: Readonly<Record<string, unknown>>;
  readonly environment: Readonly<Record<string, unknown>>;
  readonly series: readonly Series[];
  readonly profiles: readonly PhaseProfile[];
  readonly grids: readonly ReportGrid[];
  readonly scorecard: Scorecard | undefined;
}

/** Preview grids beyond this number are thinned out evenly. */
const mostPreviews = 12;

/** Reads a run directory, of a live run too. Throws nothing for parts that do not exist yet. */
export function readRunData(runDir: string, current?: RunRecord): RunData | undefined {
  const record = current ?? readSettledRecord(runDir);
  if (record === undefined) return undefined;
  const config = asRecord(asRecord(readJson(join(runDir, 'config.json'))).config);
  const metrics = readMetrics(runDir);
  return {
    record,
    config,
    environment: asRecord(readJson(join(runDir, 'environment.json'))),
    series: seriesOf(metrics),
    profiles: profilesOf(metrics),
    grids: chooseGrids(readGrids(runDir)),
    scorecard: readScorecard(runDir, hasGates(record) ? gatesOf(config) : []),
  };
}

const gatesOf = (config: Readonly<Record<string, unknown>>): readonly Gate[] =>
  (asRecord(config.evaluation).gates as readonly Gate[] | undefined) ?? [];

/** Curves by name. Steps repeated after a resume count once, with the value of the highest attempt. */
export function seriesOf(metrics: readonly MetricEvent[]): readonly Series[] {
  const byName = new Map<string, Map<number, { attempt: number; value: number }>>();
  for (const { attempt, step, values } of metrics) {
    for (const [name, value] of Object.entries(values)) {
      const points = byName.get(name) ?? new Map<number, { attempt: number; value: number }>();
      byName.set(name, points);
      if ((points.get(step)?.attempt ?? 0) <= attempt) points.set(step, { attempt, value });
    }
  }
  return [...byName].map(([name, points]) => ({
    name,
    points: [...points].map(([step, { value }]) => [step, value] as const).sort(([a], [b]) => a - b),
  }));
}

function readGrids(runDir: string): readonly ReportGrid[] {
  const folder = join(runDir, samplesName);
  return listNames(folder).flatMap(step =>
    listNames(join(folder, step))
      .filter(name => name.endsWith('.json') && !name.startsWith('.'))
      .flatMap(name => readGrid(join(folder, step), name) ?? []),
  );
}

function readGrid(folder: string, name: string): ReportGrid | undefined {
  const document = asRecord(readJson(join(folder, name)));
  const { step, kind, title, rows, columns, tile, image } = document;
  if (typeof step !== 'number' || typeof image !== 'string' || /[/\\]/.test(image)) return undefined;
  const png = readBytes(join(folder, image));
  if (png === undefined) return undefined;
  return {
    step,
    kind: String(kind),
    title: String(title),
    rows: asTexts(rows),
    columns: asTexts(columns),
    tile: tile as ReportGrid['tile'],
    image: `data:image/png;base64,${png.toString('base64')}`,
  };
}

/** All grids of evaluations' last step first, then previews in the order of training. */
function chooseGrids(grids: readonly ReportGrid[]): readonly ReportGrid[] {
  const evaluated = grids.filter(grid => grid.kind === 'evaluation');
  const lastStep = Math.max(...evaluated.map(grid => grid.step));
  const previews = grids.filter(grid => grid.kind !== 'evaluation').sort((a, b) => a.step - b.step);
  const every = Math.max(1, (previews.length - 1) / (mostPreviews - 1));
  const thinned = previews.filter((_, index) => Math.floor(index / every) !== Math.floor((index - 1) / every));
  const last = previews.at(-1);
  const shown = last === undefined || thinned.includes(last) ? thinned : [...thinned, last];
  return [...evaluated.filter(grid => grid.step === lastStep), ...shown];
}

function listNames(folder: string): readonly string[] {
  try {
    return fs.readdirSync(folder).sort();
  } catch {
    return [];
  }
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(fs.readFileSync(path, 'utf8'));
  } catch {
    return undefined;
  }
}

function readBytes(path: string): Buffer | undefined {
  try {
    return fs.readFileSync(path);
  } catch {
    return undefined;
  }
}

const asRecord = (value: unknown): Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};

const asTexts = (value: unknown): readonly string[] => (Array.isArray(value) ? value.map(String) : []);
