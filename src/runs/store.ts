/** The runs folder: which runs there are, and which one a user means. */
import fs from 'node:fs';
import { dirname, isAbsolute, join, resolve, sep } from 'node:path';
import { RcmBridgeError } from '../errors/index.ts';
import { nearest } from '../nearest.ts';
import { type RunRecord, readRecord, readSettledRecord } from './record.ts';

export interface StoredRun {
  readonly dir: string;
  readonly record: RunRecord;
}

/** Runs of a folder, newest first. A missing folder is an empty one. @throws E_RUNS_DIR */
export function listRuns(runsDir: string): readonly StoredRun[] {
  return foldersOf(runsDir)
    .flatMap(name => {
      const dir = join(runsDir, name);
      const record = readSettledRecord(dir);
      return record === undefined ? [] : [{ dir, record }];
    })
    .sort(
      (a, b) => b.record.times.created.localeCompare(a.record.times.created) || b.record.id.localeCompare(a.record.id),
    );
}

function foldersOf(runsDir: string): readonly string[] {
  try {
    return fs.readdirSync(runsDir);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT') return [];
    throw runsDirError(runsDir, code === 'ENOTDIR' ? 'is a file' : `cannot be read (${code})`);
  }
}

/**
 * The run a user means: an id, a unique prefix of one, a path, or `last`.
 * @throws E_RUN_NOT_FOUND, E_RUNS_DIR
 */
export function findRun(runsDir: string, name: string, cwd: string): StoredRun {
  const byPath = runAt(name, cwd);
  if (byPath) return byPath;
  const runs = listRuns(runsDir);
  if (name === 'last') {
    const newest = runs[0];
    if (newest) return newest;
    throw notFound(`There are no runs in ${runsDir}, so there is no last one.`, 'Start one with `rcm-bridge distill`.');
  }
  const exact = runs.find(run => run.record.id === name);
  if (exact) return exact;
  const matching = name === '' ? [] : runs.filter(run => run.record.id.startsWith(name));
  const [only, another] = matching;
  if (only && !another) return only;
  if (another) {
    const ids = matching.map(run => run.record.id).join(', ');
    throw notFound(`${matching.length} runs start with "${name}".`, `Give more letters: ${ids}.`);
  }
  const close = nearest(
    name,
    runs.map(run => run.record.id),
  );
  throw notFound(
    `There is no run "${name}" in ${runsDir}.`,
    close ? `Did you mean ${close}?` : 'See `rcm-bridge runs list`.',
  );
}

/** The run of a path; a bare word is an id and never a path. */
function runAt(name: string, cwd: string): StoredRun | undefined {
  const isPath = name.includes('/') || name.includes(sep) || isAbsolute(name) || name === '.' || name === '..';
  if (!isPath) return undefined;
  const dir = resolve(cwd, name);
  const record = readSettledRecord(dir);
  if (record) return { dir, record };
  throw notFound(`There is no run in ${dir}.`, 'A run directory holds run.json. See `rcm-bridge runs list`.');
}

/**
 * Says what is wrong with a runs folder before anything is created in it.
 * @throws E_RUNS_DIR when it, or the folder it would be created in, is no writable folder
 */
export function checkRunsDir(runsDir: string): void {
  const existing = nearestExisting(runsDir);
  if (!fs.statSync(existing).isDirectory()) throw runsDirError(existing, 'is a file');
  try {
    fs.accessSync(existing, fs.constants.W_OK | fs.constants.X_OK);
  } catch {
    throw runsDirError(existing, 'is not writable');
  }
}

/**
 * Says what is wrong with a `--run-dir` for a new run.
 * @throws E_RUN_DIR when it is a file or holds other things, E_RUN_EXISTS when it holds a run
 */
export function checkNewRunDir(runDir: string): void {
  const status = fs.statSync(runDir, { throwIfNoEntry: false });
  if (status && !status.isDirectory()) {
    throw new RcmBridgeError('E_RUN_DIR', `${runDir} is a file; a run needs a folder.`, {
      hint: 'Give --run-dir the path of a folder that is empty or does not exist.',
      details: { runDir },
    });
  }
  const record = readRecord(runDir);
  if (record) {
    throw new RcmBridgeError('E_RUN_EXISTS', `${runDir} already holds the run ${record.id}.`, {
      hint: `Go on with it: rcm-bridge resume ${runDir} (or --if-exists resume).`,
      details: { runDir, runId: record.id },
    });
  }
  if (status && fs.readdirSync(runDir).length > 0) {
    throw new RcmBridgeError('E_RUN_DIR', `${runDir} holds other files, but no run.`, {
      hint: 'Give --run-dir the path of a folder that is empty or does not exist.',
      details: { runDir },
    });
  }
}

function nearestExisting(path: string): string {
  let folder = resolve(path);
  while (!exists(folder)) folder = dirname(folder);
  return folder;
}

/** A path below a file does not exist either (ENOTDIR). */
function exists(path: string): boolean {
  try {
    fs.statSync(path);
    return true;
  } catch {
    return false;
  }
}

const runsDirError = (runsDir: string, what: string): RcmBridgeError =>
  new RcmBridgeError('E_RUNS_DIR', `The runs folder cannot be used: ${runsDir} ${what}.`, {
    hint: 'Choose another one with --runs-dir or RCM_BRIDGE_RUNS_DIR.',
    details: { runsDir },
  });

const notFound = (message: string, hint: string): RcmBridgeError =>
  new RcmBridgeError('E_RUN_NOT_FOUND', message, { hint });
