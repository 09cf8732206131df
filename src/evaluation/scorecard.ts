/** The verdict on a run: its last evaluation and how it stands against the gates. */
import fs from 'node:fs';
import { join } from 'node:path';
import { type Evaluation, evaluationFromJson } from './evaluation.ts';
import { type Gate, type JudgedGate, judgeGates } from './gates.ts';

export const evaluationFolder = 'evaluation';

export interface Scorecard {
  readonly step: number;
  readonly network: 'student' | 'ema';
  readonly gates: readonly JudgedGate[];
  /** True when no gate is missed; exit code 6 otherwise. */
  readonly met: boolean;
  readonly floors: Evaluation['floors'];
  readonly rows: Evaluation['rows'];
}

export function scorecardOf(evaluation: Evaluation, gates: readonly Gate[]): Scorecard {
  const judged = judgeGates(gates, evaluation);
  const { step, network, floors, rows } = evaluation;
  return { step, network, gates: judged, met: judged.every(gate => gate.met), floors, rows };
}

/** Evaluations of a run directory, oldest first. */
export function readEvaluations(runDir: string): readonly Evaluation[] {
  const folder = join(runDir, evaluationFolder);
  let names: string[];
  try {
    names = fs.readdirSync(folder);
  } catch {
    return [];
  }
  return names
    .filter(name => /^step-\d{8,}-(student|ema)\.json$/.test(name))
    .sort()
    .flatMap(name => readEvaluation(join(folder, name)) ?? []);
}

function readEvaluation(path: string): Evaluation | undefined {
  try {
    return evaluationFromJson(JSON.parse(fs.readFileSync(path, 'utf8')));
  } catch {
    return undefined;
  }
}

/** The scorecard of a run's last evaluation; undefined before the first. */
export function readScorecard(runDir: string, gates: readonly Gate[]): Scorecard | undefined {
  const last = readEvaluations(runDir).at(-1);
  return last && scorecardOf(last, gates);
}
