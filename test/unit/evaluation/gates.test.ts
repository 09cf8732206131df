import { describe, expect, test } from 'vitest';
import { loadConfig } from '../../../src/config/load.ts';
import {
  type Evaluation,
  evaluationFromJson,
  type MetricValue,
  type Sampler,
} from '../../../src/evaluation/evaluation.ts';
import { judgeGates } from '../../../src/evaluation/gates.ts';
import { distillationPlan, pretrainingPlan, smokePlan } from '../../../src/evaluation/plan.ts';
import { scorecardOf } from '../../../src/evaluation/scorecard.ts';

const measured = (value: number | null, reason?: string): MetricValue => ({
  value,
  low: null,
  high: null,
  ...(reason ? { reason } : {}),
});

const row = (sampler: Sampler, steps: number | null, metrics: Record<string, MetricValue>) => ({
  sampler,
  steps,
  guidance: sampler === 'teacher' ? 1.5 : null,
  calls: steps ?? 0,
  n: 1797,
  seed: 1000,
  seconds: 0.1,
  metrics,
});

/** What rcm-method section 11 measured: a good student. */
const good: Evaluation = {
  step: 1050,
  network: 'ema',
  features: 'builtin:digits-classifier',
  featureDimension: 32,
  floors: { realReal: 5, teacherTeacher: 1 },
  seconds: 60,
  rows: [
    row('train', null, { fdTeacher: measured(55.7) }),
    row('heldOut', null, { fdTeacher: measured(60) }),
    row('teacher', 1, { fdTeacher: measured(134) }),
    row('teacher', 4, { fdTeacher: measured(5.6) }),
    row('student', 1, { fdTeacher: measured(12.4), recall: measured(0.84) }),
    row('student', 4, { fdTeacher: measured(25), recall: measured(0.92) }),
  ],
};

const withStudent = (metrics: Record<string, MetricValue>): Evaluation => ({
  ...good,
  rows: good.rows.map(one => (one.sampler === 'student' ? { ...one, metrics: { ...one.metrics, ...metrics } } : one)),
});

const shippedGates = async () => (await loadConfig('digits-rcm', { cwd: '/' })).config.evaluation.gates;

describe('gates', () => {
  test('of the shipped config pass a good student', async () => {
    const judged = judgeGates(await shippedGates(), good);
    expect(judged.map(({ met }) => met)).toEqual([true, true, true]);
    expect(judged[0]).toMatchObject({ value: 12.4, bound: 0.15 * 134 });
    expect(judged[1]).toMatchObject({ value: 25, bound: 0.65 * 55.7 });
    expect(judged[2]?.text).toBe('recall at 1 step at least 0.75: 0.84, bound 0.75');
  });

  test('compare with the teacher at the same steps, with the images, or with a number', () => {
    const at = (value: number) => withStudent({ fdTeacher: measured(value) });
    const gate = (steps: number, relativeTo: 'teacher' | 'train' | 'heldOut' | null) =>
      ({ metric: 'fdTeacher', steps, atMost: 1, relativeTo }) as const;
    const isMet = (value: number, ...words: Parameters<typeof gate>) => judgeGates([gate(...words)], at(value))[0]?.met;
    expect([isMet(134, 1, 'teacher'), isMet(134.1, 1, 'teacher')]).toEqual([true, false]);
    expect([isMet(5.6, 4, 'teacher'), isMet(134, 4, 'teacher')]).toEqual([true, false]);
    expect([isMet(55.7, 1, 'train'), isMet(55.8, 1, 'train')]).toEqual([true, false]);
    expect([isMet(60, 1, 'heldOut'), isMet(61, 1, 'heldOut')]).toEqual([true, false]);
    expect([isMet(1, 1, null), isMet(1.01, 1, null)]).toEqual([true, false]);
  });

  test('may have two bounds, and both count', () => {
    const gate = { metric: 'recall', steps: 1, atLeast: 0.5, atMost: 0.9 };
    const isMet = (recall: number) => judgeGates([gate], withStudent({ recall: measured(recall) }))[0]?.met;
    expect([0.4, 0.5, 0.9, 0.91].map(isMet)).toEqual([false, true, true, false]);
  });

  test.each([
    ['a refused distance', withStudent({ fdTeacher: measured(null, 'n') }), /refused: too few samples/],
    ['a value that is no number', withStudent({ fdTeacher: measured(Number.NaN) }), /NaN/],
    ['an infinite value', withStudent({ fdTeacher: measured(Number.NEGATIVE_INFINITY) }), /Infinity/],
    [
      'a missing row',
      { ...good, rows: good.rows.filter(one => one.sampler !== 'student') },
      /no fdTeacher of student at 1 step/,
    ],
    ['a missing reference', { ...good, rows: good.rows.filter(one => one.sampler !== 'teacher') }, /teacher at 1 step/],
  ])('on %s are not met', (_name, evaluation, reason) => {
    const gate = { metric: 'fdTeacher', steps: 1, atMost: 0.15, relativeTo: 'teacher' as const };
    const [judged] = judgeGates([gate], evaluation);
    expect(judged).toMatchObject({ met: false, bound: null });
    expect(judged?.reason).toMatch(reason);
  });

  test('without a bound are not met', () => {
    expect(judgeGates([{ metric: 'recall', steps: 1, atMost: null, atLeast: null }], good)[0]?.met).toBe(false);
  });

  test('none: the scorecard is met', () => {
    expect(scorecardOf(good, [])).toMatchObject({ met: true, gates: [], step: 1050 });
    expect(scorecardOf(good, [{ metric: 'recall', steps: 1, atLeast: 0.99 }]).met).toBe(false);
  });
});

describe('an evaluation file', () => {
  test('gives back numbers that are not finite', () => {
    const file = {
      schema: 1,
      ...good,
      floors: { realReal: 'NaN', teacherTeacher: null },
      rows: [{ ...good.rows[0], metrics: { fdTeacher: { value: 'Infinity', low: null, high: 2 } } }],
    };
    expect(evaluationFromJson(file)).toMatchObject({
      floors: { realReal: Number.NaN, teacherTeacher: null },
      rows: [{ metrics: { fdTeacher: { value: Number.POSITIVE_INFINITY, low: null, high: 2 } } }],
    });
  });
});

describe('plans', () => {
  test('of a distillation hold images, teacher and student rows', async () => {
    const { config } = await loadConfig('digits-rcm', { cwd: '/' });
    const plan = distillationPlan(config);
    expect(plan.rows.map(({ sampler, steps, guidance }) => `${sampler} ${steps} ${guidance}`)).toEqual([
      'train null null',
      'heldOut null null',
      ...[1, 2, 4, 8, 50].map(steps => `teacher ${steps} 1.5`),
      ...[1, 2, 4].map(steps => `student ${steps} null`),
    ]);
    expect(plan).toMatchObject({ samples: 1797, seed: 1000, network: 'ema', neighbours: 5, previewSteps: [1, 2, 4] });
    expect(smokePlan(plan)).toMatchObject({ samples: 8, previewSteps: [1] });
    expect(smokePlan(plan).rows.map(({ sampler }) => sampler)).toEqual(['train', 'heldOut', 'teacher', 'student']);
  });

  test('of a pretraining hold the row without guidance, and no student', async () => {
    const { config } = await loadConfig('digits-rcm', { cwd: '/' });
    const { rows } = pretrainingPlan(config);
    expect(rows.filter(({ sampler }) => sampler === 'student')).toEqual([]);
    expect(rows.at(-1)).toEqual({ sampler: 'teacher', steps: 50, guidance: 1 });
  });
});
