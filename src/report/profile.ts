/** The time of a step by parts, from the metrics of a run with `compute.profile`. */
import { metricNames, profileParts, profileTime } from '../logging/metric-names.ts';
import type { MetricEvent } from '../runs/events.ts';
import { html, type Markup } from './markup.ts';

/** Means over all profiled steps of a phase. */
export interface PhaseProfile {
  readonly phase: string;
  /** How many steps the means are of. */
  readonly steps: number;
  readonly stepMs: number;
  /** Share of the step outside calls of networks. */
  readonly outsideNetworks: number;
  /** In a fixed order; those that took no time are left out. */
  readonly parts: readonly { readonly name: PartName; readonly ms: number; readonly share: number }[];
}

type PartName = keyof typeof profileParts;

const partNames = Object.keys(profileParts) as readonly PartName[];

/** Phases in the order in which they first occur. Steps repeated after a resume count once, with the highest attempt. */
export function profilesOf(metrics: readonly MetricEvent[]): readonly PhaseProfile[] {
  const newest = new Map<number, MetricEvent>();
  for (const event of metrics) {
    if ((newest.get(event.step)?.attempt ?? 0) <= event.attempt) newest.set(event.step, event);
  }
  const lines = [...newest.values()].filter(({ values }) => (values[metricNames.profileSteps] ?? 0) > 0);
  return [...new Set(lines.map(({ phase }) => phase))].map(phase =>
    profileOf(
      phase,
      lines.filter(line => line.phase === phase),
    ),
  );
}

function profileOf(phase: string, lines: readonly MetricEvent[]): PhaseProfile {
  const sumOf = (weighted: (values: MetricEvent['values']) => number): number =>
    lines.reduce((sum, { values }) => sum + weighted(values) * (values[metricNames.profileSteps] ?? 0), 0);
  const steps = sumOf(() => 1);
  const total = sumOf(values => values[metricNames.profileStep] ?? 0);
  const outside = sumOf(
    values => (values[metricNames.profileOutsideNetworks] ?? 0) * (values[metricNames.profileStep] ?? 0),
  );
  const parts = partNames.map(name => {
    const passed = sumOf(values => values[profileTime(name)] ?? 0);
    return { name, ms: passed / steps, share: passed / total };
  });
  return {
    phase,
    steps,
    stepMs: total / steps,
    outsideNetworks: outside / total,
    parts: parts.filter(({ ms }) => ms > 0),
  };
}

/** One column a phase. */
export function profileTable(profiles: readonly PhaseProfile[]): Markup {
  const present = partNames.filter(name => profiles.some(({ parts }) => parts.some(part => part.name === name)));
  return html`<p class="note">Mean of the steps that were timed, of the leading process; the parts add up to the step.</p>
<div class="scroll"><table><thead><tr><th>part</th>${profiles.map(
    ({ phase, steps, stepMs }) => html`<th>${phase}<small>${steps} steps, ${milliseconds(stepMs)} each</small></th>`,
  )}</tr></thead><tbody>
${present.map(name => html`<tr><td>${profileParts[name]}</td>${profiles.map(profile => partCell(profile, name))}</tr>`)}
<tr><td>outside calls of networks</td>${profiles.map(({ outsideNetworks, stepMs }) => cell(outsideNetworks * stepMs, outsideNetworks))}</tr>
</tbody></table></div>`;
}

function partCell({ parts }: PhaseProfile, name: PartName): Markup {
  const part = parts.find(one => one.name === name);
  return part === undefined ? html`<td></td>` : cell(part.ms, part.share);
}

function cell(ms: number, share: number): Markup {
  const percent = (100 * share).toFixed(1);
  return html`<td>${milliseconds(ms)}<small>${percent} %</small><span class="bar" style="width:${percent}%"></span></td>`;
}

const milliseconds = (ms: number): string => `${ms >= 100 ? ms.toFixed(0) : String(Number(ms.toPrecision(3)))} ms`;
