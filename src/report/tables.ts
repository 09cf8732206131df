/** The tables of a report: evaluated rows and gates. */
import type { EvaluatedRow, MetricValue } from '../evaluation/evaluation.ts';
import type { JudgedGate } from '../evaluation/gates.ts';
import type { Scorecard } from '../evaluation/scorecard.ts';
import { html, type Markup } from './markup.ts';

const rowNames = {
  student: 'student',
  teacher: 'teacher',
  train: 'training images',
  heldOut: 'held-out images',
} as const;

/** Every row with its metrics; beside every distance stand its number of samples and the floor it cannot go below. */
export function evaluationTable(scorecard: Scorecard): Markup {
  const metrics = [...new Set(scorecard.rows.flatMap(row => Object.keys(row.metrics)))];
  const { realReal, teacherTeacher } = scorecard.floors;
  return html`<p class="note">Network ${scorecard.network} at step ${scorecard.step}. In brackets: 95 % bootstrap intervals.
Floors: training to held-out images ${shown(realReal)}, one teacher set to another ${shown(teacherTeacher)}.</p>
<div class="scroll"><table><thead><tr><th>row</th><th>steps</th><th>guidance</th><th>calls</th><th>n</th><th>seed</th><th>s / sample</th>
${metrics.map(name => html`<th>${name}</th>`)}</tr></thead><tbody>
${scorecard.rows.map(row => tableRow(row, metrics, scorecard.floors))}
</tbody></table></div>`;
}

function tableRow(row: EvaluatedRow, metrics: readonly string[], floors: Scorecard['floors']): Markup {
  const isImages = row.steps === null;
  return html`<tr><td>${rowNames[row.sampler]}</td><td>${row.steps ?? ''}</td><td>${row.guidance ?? ''}</td>
<td>${isImages ? '' : row.calls}</td><td>${row.n}</td><td>${row.seed ?? ''}</td><td>${row.seconds === null ? '' : shown(row.seconds)}</td>
${metrics.map(name => html`<td>${metricCell(name, row, floors)}</td>`)}</tr>`;
}

function metricCell(name: string, row: EvaluatedRow, floors: Scorecard['floors']): Markup {
  const metric = row.metrics[name];
  if (metric === undefined) return html``;
  const floor = floorOf(name, floors);
  const beside = floor === undefined ? '' : html`<small>n ${row.n}, floor ${shown(floor)}</small>`;
  return html`${metricText(metric)}${beside}`;
}

const floorOf = (name: string, floors: Scorecard['floors']): number | null | undefined =>
  ({ fdTeacher: floors.teacherTeacher, fdReal: floors.realReal })[name];

function metricText({ value, low, high, reason }: MetricValue): string {
  if (value === null) return reason === 'n' ? 'refused: n too small' : (reason ?? '');
  return low === null || high === null ? shown(value) : `${shown(value)} [${shown(low)}, ${shown(high)}]`;
}

export function gatesTable(gates: readonly JudgedGate[]): Markup {
  return html`<table><tbody>${gates.map(
    gate =>
      html`<tr><td class="${gate.met ? 'met' : 'unmet'}">${gate.met ? 'met' : 'not met'}</td><td>${gate.text}</td></tr>`,
  )}</tbody></table>`;
}

const shown = (value: number | null): string => {
  if (value === null) return 'unknown';
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
};
