/** Which curves a report draws. */
import { metricNames, teacherGapBucket } from '../logging/metric-names.ts';
import type { Series } from './run-data.ts';

export interface Chart {
  readonly title: string;
  /** A sentence on how to read it. */
  readonly note: string;
  readonly scale: 'linear' | 'log';
  readonly labels: readonly string[];
  /** uPlot's form: steps, then one column a curve; null where there is no point. */
  readonly data: readonly (readonly (number | null)[])[];
}

interface ChartPlan extends Omit<Chart, 'labels' | 'data'> {
  /** Metric name and label of each curve. */
  readonly curves: readonly (readonly [name: string, label: string])[];
}

const plans: readonly ChartPlan[] = [
  {
    title: 'Student losses',
    note: 'With normalised tangents the sCM loss stays nearly level; what it hides shows in the norms below.',
    scale: 'linear',
    curves: [
      [metricNames.scmLoss, 'sCM'],
      [metricNames.dcmLoss, 'dCM'],
      [metricNames.dmdLoss, 'DMD'],
      [metricNames.flowLoss, 'flow matching'],
    ],
  },
  {
    title: 'g norm',
    note: 'Norm of the tangent g before normalisation.',
    scale: 'log',
    curves: [[metricNames.gNorm, 'g norm']],
  },
  {
    title: 'JVP norm',
    note: 'Norm of the derivative of the network along its trajectory.',
    scale: 'log',
    curves: [[metricNames.jvpNorm, 'JVP norm']],
  },
  {
    title: 'Teacher gap by time',
    note: 'Distance between the velocities of student and teacher, by quarter of the time axis.',
    scale: 'log',
    curves: [
      [teacherGapBucket(0), 'nearest to the data'],
      [teacherGapBucket(1), 'second quarter'],
      [teacherGapBucket(2), 'third quarter'],
      [teacherGapBucket(3), 'nearest to noise'],
    ],
  },
  {
    title: 'Critic loss',
    note: 'How well the critic follows the distribution of the student.',
    scale: 'linear',
    curves: [[metricNames.criticLoss, 'critic']],
  },
  {
    title: 'Gradient norms of both terms',
    note: 'Weighted gradients of the two student losses with respect to the output.',
    scale: 'log',
    curves: [
      [metricNames.gradientScm, 'sCM'],
      [metricNames.gradientDcm, 'dCM'],
      [metricNames.gradientDmd, 'DMD'],
    ],
  },
  {
    title: 'Gradient norms of the networks',
    note: 'Norm of the gradient over all parameters of a network.',
    scale: 'log',
    curves: [
      [metricNames.gradientStudent, 'student'],
      ['grad_norm/teacher', 'teacher'],
      [metricNames.gradientCritic, 'critic'],
    ],
  },
];

/** The charts that have at least one curve. */
export function chartsOf(series: readonly Series[]): readonly Chart[] {
  const byName = new Map(series.map(one => [one.name, one]));
  return plans.flatMap(({ curves, ...plan }) => {
    const present = curves.flatMap(([name, label]) => {
      const found = byName.get(name);
      return found ? [{ label, points: new Map(found.points) }] : [];
    });
    if (present.length === 0) return [];
    const steps = [...new Set(present.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
    const columns = present.map(({ points }) => steps.map(step => drawable(points.get(step), plan.scale)));
    return [{ ...plan, labels: present.map(({ label }) => label), data: [steps, ...columns] }];
  });
}

/** NaN and infinities leave a hole in the curve; so does what a logarithm cannot show. */
function drawable(value: number | undefined, scale: Chart['scale']): number | null {
  if (value === undefined || !Number.isFinite(value)) return null;
  return scale === 'log' && value <= 0 ? null : value;
}
