/** Quality gates: bounds on the student's rows, from `evaluation.gates`. */
import { type Evaluation, findRow, type Sampler } from './evaluation.ts';

export interface Gate {
  readonly metric: string;
  /** Sampler steps of the student's row that is judged. */
  readonly steps: number;
  readonly atMost?: number | null;
  readonly atLeast?: number | null;
  /** The bound is a multiple of this row's value: the teacher's with the same steps, or that of the images. */
  readonly relativeTo?: Exclude<Sampler, 'student'> | null;
}

export interface JudgedGate {
  readonly gate: Gate;
  readonly met: boolean;
  readonly value: number | null;
  /** The bound in the metric's own units; null when the row it is relative to has no value. */
  readonly bound: number | null;
  /** Why a gate without numbers is not met. */
  readonly reason?: string;
  /** One sentence for people. */
  readonly text: string;
}

/** Judges every gate. One that cannot be judged (no row, a refused distance, not a number) is not met. */
export function judgeGates(gates: readonly Gate[], evaluation: Evaluation): readonly JudgedGate[] {
  return gates.map(gate => judge(gate, evaluation));
}

function judge(gate: Gate, evaluation: Evaluation): JudgedGate {
  const value = measuredValue(evaluation, 'student', gate.steps, gate.metric);
  const reference =
    gate.relativeTo == null
      ? { value: 1 }
      : measuredValue(evaluation, gate.relativeTo, gate.relativeTo === 'teacher' ? gate.steps : null, gate.metric);
  const limit = gate.atMost ?? gate.atLeast;
  const reason = value.reason ?? reference.reason ?? (limit == null ? 'the gate has no bound' : undefined);
  if (reason !== undefined || value.value === null || reference.value === null || limit == null) {
    const text = `${describe(gate)}: not judged, ${reason ?? 'no value'}`;
    return { gate, met: false, value: value.value, bound: null, reason: reason ?? 'no value', text };
  }
  const measured = value.value;
  const scale = reference.value;
  const met =
    (gate.atMost == null || measured <= gate.atMost * scale) &&
    (gate.atLeast == null || measured >= gate.atLeast * scale);
  const bound = limit * scale;
  return { gate, met, value: measured, bound, text: `${describe(gate)}: ${short(measured)}, bound ${short(bound)}` };
}

interface Found {
  readonly value: number | null;
  readonly reason?: string;
}

function measuredValue(evaluation: Evaluation, sampler: Sampler, steps: number | null, metric: string): Found {
  const name = steps === null ? sampler : `${sampler} at ${steps} ${steps === 1 ? 'step' : 'steps'}`;
  const measured = findRow(evaluation, sampler, steps)?.metrics[metric];
  if (measured === undefined) return { value: null, reason: `there is no ${metric} of ${name}` };
  if (measured.value === null) {
    const why = measured.reason === 'n' ? 'too few samples' : (measured.reason ?? 'no value');
    return { value: null, reason: `${metric} of ${name} was refused: ${why}` };
  }
  if (!Number.isFinite(measured.value)) return { value: null, reason: `${metric} of ${name} is ${measured.value}` };
  return { value: measured.value };
}

function describe(gate: Gate): string {
  const relative = gate.relativeTo == null ? '' : ` x ${gate.relativeTo}`;
  const bounds = [
    gate.atMost == null ? '' : `at most ${gate.atMost}${relative}`,
    gate.atLeast == null ? '' : `at least ${gate.atLeast}${relative}`,
  ].filter(bound => bound !== '');
  return `${gate.metric} at ${gate.steps} ${gate.steps === 1 ? 'step' : 'steps'} ${bounds.join(' and ')}`.trim();
}

const short = (value: number): string => Number(value.toPrecision(4)).toString();
