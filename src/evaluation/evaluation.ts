/** evaluation/*.json: what was measured, one file a network that was evaluated. */
import type { EvaluationRow, EventBody } from '../protocol/messages.ts';
import { numberFromJson } from '../runs/json.ts';

export type Sampler = 'student' | 'teacher' | 'train' | 'heldOut';

/** A measured number with its 95 % bootstrap interval; `reason` says why there is none (`n`: too few samples). */
export interface MetricValue {
  readonly value: number | null;
  readonly low: number | null;
  readonly high: number | null;
  readonly reason?: string;
}

export interface EvaluatedRow {
  readonly sampler: Sampler;
  /** Sampler steps; null for images. */
  readonly steps: number | null;
  readonly guidance: number | null;
  /** Network calls a sample. */
  readonly calls: number;
  /** Number of samples. */
  readonly n: number;
  readonly seed: number | null;
  /** Seconds a sample; null for images. */
  readonly seconds: number | null;
  readonly metrics: Readonly<Record<string, MetricValue>>;
}

export interface Evaluation {
  readonly step: number;
  readonly network: 'student' | 'ema';
  readonly features: string | null;
  readonly featureDimension: number | null;
  /** Frechet distances of training to held-out images, and of one teacher set to another. */
  readonly floors: { readonly realReal: number | null; readonly teacherTeacher: number | null };
  readonly rows: readonly EvaluatedRow[];
  /** How long the evaluation took. */
  readonly seconds: number;
}

/** An evaluation as the sidecar reports it. */
export function evaluationFromBody(body: EventBody<'evaluation'>): Evaluation {
  return { ...body, rows: body.rows.map(rowFromBody) };
}

function rowFromBody(row: EvaluationRow): EvaluatedRow {
  const metrics = Object.fromEntries(Object.entries(row.metrics).map(([name, value]) => [name, metricFrom(value)]));
  return { ...row, metrics };
}

/** An evaluation read from its file. Numbers that are not finite are strings there. */
export function evaluationFromJson(document: unknown): Evaluation {
  const { schema: _schema, ...body } = document as Evaluation & { schema: number };
  const floors = { realReal: number(body.floors?.realReal), teacherTeacher: number(body.floors?.teacherTeacher) };
  const rows = body.rows.map(row => ({
    ...row,
    metrics: Object.fromEntries(Object.entries(row.metrics).map(([name, value]) => [name, metricFrom(value)])),
  }));
  return { ...body, floors, rows };
}

const number = (value: unknown): number | null => numberFromJson(value) ?? null;

function metricFrom(metric: object): MetricValue {
  const { value, low, high, reason } = metric as { value?: unknown; low?: unknown; high?: unknown; reason?: string };
  return { value: number(value), low: number(low), high: number(high), ...(reason === undefined ? {} : { reason }) };
}

/** The row of a sampler; `steps` null: the first one, as for images. */
export function findRow(evaluation: Evaluation, sampler: Sampler, steps: number | null): EvaluatedRow | undefined {
  return evaluation.rows.find(row => row.sampler === sampler && (steps === null || row.steps === steps));
}
