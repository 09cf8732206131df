/** Training checkpoints as Node sees them: a folder whose manifest matches its files, byte for byte. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { RcmBridgeError } from '../errors/index.ts';
import { makeDirectory, shareFile } from './files.ts';
import { stepName, stepOf } from './run-id.ts';

export const checkpointsName = 'checkpoints';
const manifestName = 'manifest.json';

export interface CheckpointManifest {
  readonly schema: 1;
  readonly step: number;
  readonly files: Readonly<Record<string, { readonly size: number; readonly sha256: string }>>;
  readonly torch?: string;
  readonly threads?: number;
}

export interface Checkpoint {
  readonly step: number;
  /** Absolute. */
  readonly path: string;
  readonly manifest: CheckpointManifest;
}

/** Checkpoints with a readable manifest, oldest first; the files are not read. */
export function listCheckpoints(runDir: string): readonly Checkpoint[] {
  return stepsWithFolder(runDir).flatMap(step => {
    const path = checkpointPath(runDir, step);
    const manifest = readManifest(path);
    return manifest === undefined ? [] : [{ step, path, manifest }];
  });
}

/**
 * The newest checkpoint, or that of `fromStep`, whose files all have the size and sha256 of its manifest. A damaged one
 * is not passed over: its steps would be lost without a word.
 * @throws E_CHECKPOINT_MISSING, E_CHECKPOINT_CORRUPT, which offers the newest older one that is whole
 */
export async function findCheckpoint(runDir: string, fromStep?: number): Promise<Checkpoint> {
  const all = listCheckpoints(runDir);
  const wanted = fromStep === undefined ? all.at(-1) : all.find(({ step }) => step === fromStep);
  if (!wanted) throw missing(runDir, fromStep, all);
  const fault = await findFault(wanted);
  if (fault === undefined) return wanted;
  const whole = await newestWhole(all.filter(({ step }) => step < wanted.step));
  throw new RcmBridgeError('E_CHECKPOINT_CORRUPT', `The checkpoint of step ${wanted.step} is damaged: ${fault}.`, {
    hint: whole
      ? `That of step ${whole.step} is whole: add --from-step ${whole.step} to go on from it in a child run.`
      : 'No older one is whole: start the run again with `rcm-bridge distill`.',
    details: { runDir, step: wanted.step, wholeStep: whole?.step ?? null },
  });
}

async function newestWhole(checkpoints: readonly Checkpoint[]): Promise<Checkpoint | undefined> {
  for (const checkpoint of [...checkpoints].reverse())
    if ((await findFault(checkpoint)) === undefined) return checkpoint;
  return undefined;
}

export const checkpointPath = (runDir: string, step: number): string => join(runDir, checkpointsName, stepName(step));

/**
 * Puts a checkpoint into another run's folder, without a copy where the file system has hard links: files of checkpoints
 * are never written again, and pruning one run takes only its names away.
 * @throws E_CHECKPOINT_MISSING when the run it belongs to has just pruned it, E_DISK_FULL
 */
export function shareCheckpoint({ path, manifest, step }: Checkpoint, runDir: string): void {
  const target = checkpointPath(runDir, step);
  try {
    for (const name of [...Object.keys(manifest.files), manifestName]) {
      makeDirectory(dirname(join(target, name)));
      shareFile(join(path, name), join(target, name));
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new RcmBridgeError('E_CHECKPOINT_MISSING', `${path} is not there any more.`, {
      hint: 'The run that it belongs to has removed it (checkpoints.keepLast); take a later step.',
      cause: error,
    });
  }
}

function missing(runDir: string, fromStep: number | undefined, all: readonly Checkpoint[]): RcmBridgeError {
  const what = fromStep === undefined ? 'no checkpoint' : `no checkpoint of step ${fromStep}`;
  const steps = all.map(({ step }) => step).join(', ');
  return new RcmBridgeError('E_CHECKPOINT_MISSING', `There is ${what} in ${join(runDir, checkpointsName)}.`, {
    hint: steps === '' ? 'Start the run again with `rcm-bridge distill`.' : `Steps with a checkpoint: ${steps}.`,
    details: { runDir },
  });
}

/** What is wrong with a checkpoint's files, or undefined. */
export async function findFault({ path, manifest }: Checkpoint): Promise<string | undefined> {
  for (const [name, expected] of Object.entries(manifest.files)) {
    const file = join(path, name);
    const size = fs.statSync(file, { throwIfNoEntry: false })?.size;
    if (size === undefined) return `${file} is missing`;
    if (size !== expected.size) return `${file} has ${size} bytes instead of ${expected.size}`;
    if ((await sha256(file)) !== expected.sha256) return `${file} does not match its sha256`;
  }
  return undefined;
}

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(fs.createReadStream(path), hash);
  return hash.digest('hex');
}

function stepsWithFolder(runDir: string): readonly number[] {
  let names: string[];
  try {
    names = fs.readdirSync(join(runDir, checkpointsName));
  } catch {
    return [];
  }
  return names.flatMap(name => stepOf(name) ?? []).sort((a, b) => a - b);
}

function readManifest(path: string): CheckpointManifest | undefined {
  try {
    const manifest = JSON.parse(fs.readFileSync(join(path, manifestName), 'utf8')) as CheckpointManifest;
    const names = Object.keys(manifest.files);
    const harmless = names.length > 0 && names.every(isBelow);
    return manifest.schema === 1 && Number.isSafeInteger(manifest.step) && harmless ? manifest : undefined;
  } catch {
    return undefined;
  }
}

/** A file of the folder itself, or of one below it. */
function isBelow(name: string): boolean {
  const parts = name.split('/');
  return parts.length <= 2 && parts.every(part => part !== '' && !/\\|^\.\.?$/.test(part));
}
