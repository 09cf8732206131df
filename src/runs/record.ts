/** run.json: what a run is and where it stands. */
import fs from 'node:fs';
import { join } from 'node:path';
import { writeJsonAtomic } from './files.ts';
import { isAlive, type Owner } from './owner.ts';

export type RunState = 'starting' | 'running' | 'paused' | 'stopping' | 'succeeded' | 'stopped' | 'failed';
export type EndState = Extract<RunState, 'succeeded' | 'stopped' | 'failed'>;

/** Which state may follow which. An end state is reached once; a resumed run starts again from `starting`. */
export const transitions: Readonly<Record<RunState, readonly RunState[]>> = {
  starting: ['running', 'stopping', 'succeeded', 'stopped', 'failed'],
  running: ['paused', 'stopping', 'succeeded', 'stopped', 'failed'],
  paused: ['running', 'stopping', 'succeeded', 'stopped', 'failed'],
  stopping: ['succeeded', 'stopped', 'failed'],
  succeeded: [],
  stopped: [],
  failed: [],
};

export const isEndState = (state: RunState): state is EndState => transitions[state].length === 0;

/** Kinds of runs. */
export type Job = 'distill' | 'pretrain';

export interface RunProgress {
  readonly step: number;
  readonly steps: number;
  readonly studentUpdates: number;
  readonly criticUpdates: number;
}

export interface RunErrorRecord {
  readonly code: string;
  readonly message: string;
  readonly hint?: string;
}

export interface RunRecord {
  readonly id: string;
  /** What the run does. */
  readonly job: Job;
  readonly state: RunState;
  /** Counts the starts: 1, then one more with every resume. */
  readonly attempt: number;
  readonly owner: Owner;
  /** ISO time; renewed while the owner lives. */
  readonly heartbeat: string;
  readonly times: { readonly created: string; readonly started: string | null; readonly ended: string | null };
  readonly progress: RunProgress;
  readonly exitCode: number | null;
  readonly error: RunErrorRecord | null;
  readonly smoke: boolean;
  /** The run and the step of its checkpoint that this one went on from; only a child has it. */
  readonly parent?: RunParent;
}

export interface RunParent {
  readonly id: string;
  readonly step: number;
}

/** Gates bound a student that had all its steps: a smoke run has no such student, a pretraining none at all. */
export const hasGates = ({ job, smoke }: Pick<RunRecord, 'job' | 'smoke'>): boolean => job === 'distill' && !smoke;

export const recordName = 'run.json';

export function writeRecord(runDir: string, record: RunRecord): void {
  writeJsonAtomic(join(runDir, recordName), { ...record });
}

/** run.json as it is; undefined when the folder holds no run. */
export function readRecord(runDir: string): RunRecord | undefined {
  try {
    const value: unknown = JSON.parse(fs.readFileSync(join(runDir, recordName), 'utf8'));
    return isRecord(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

const isRecord = (value: unknown): value is RunRecord =>
  typeof value === 'object' &&
  value !== null &&
  'id' in value &&
  'state' in value &&
  (value.state as string) in transitions;

/**
 * run.json as a reader should see it: a run whose owner died without a word has failed, whatever the file says.
 */
export function readSettledRecord(runDir: string): RunRecord | undefined {
  const record = readRecord(runDir);
  if (record === undefined || isEndState(record.state) || isAlive(record.owner, record.heartbeat)) return record;
  // The owner may have finished between the two looks.
  const again = readRecord(runDir) ?? record;
  return isEndState(again.state) ? again : { ...again, state: 'failed', exitCode: 4, error: ownerGone(again) };
}

const ownerGone = (record: RunRecord): RunErrorRecord => ({
  code: 'E_OWNER_GONE',
  message: `Process ${record.owner.pid}, which owned the run, ended without finishing it.`,
  hint: `Go on with: rcm-bridge resume ${record.id}`,
});
