/** Training checkpoints as Node sees them: a folder whose manifest matches its files, byte for byte. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { RcmBridgeError } from '../errors/index.ts';
import { stepName, stepOf } from './run-id.ts';

export const checkpointsName = 'checkpoints';

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
    const path = join(runDir, checkpointsName, stepName(step));
    const manifest = readManifest(path);
    return manifest === undefined ? [] : [{ step, path, manifest }];
  });
}

/**
 * The newest checkpoint whose files all have the size and sha256 of its manifest, or that of `fromStep`.
 * @throws E_CHECKPOINT_MISSING, E_CHECKPOINT_CORRUPT
 */
export async function findCheckpoint(runDir: string, fromStep?: number): Promise<Checkpoint> {
  const all = listCheckpoints(runDir);
  const candidates = fromStep === undefined ? [...all].reverse() : all.filter(({ step }) => step === fromStep);
  let fault: string | undefined;
  for (const checkpoint of candidates) {
    const found = await findFault(checkpoint);
    if (found === undefined) return checkpoint;
    fault ??= found;
  }
  if (fault !== undefined) {
    throw new RcmBridgeError('E_CHECKPOINT_CORRUPT', `No checkpoint can be used: ${fault}.`, {
      hint: 'Start the run again with `rcm-bridge distill`.',
      details: { runDir },
    });
  }
  throw missing(runDir, fromStep, all);
}

function missing(runDir: string, fromStep: number | undefined, all: readonly Checkpoint[]): RcmBridgeError {
  const what = fromStep === undefined ? 'no checkpoint' : `no checkpoint of step ${fromStep}`;
  const steps = all.map(({ step }) => step).join(', ');
  return new RcmBridgeError('E_CHECKPOINT_MISSING', `There is ${what} in ${join(runDir, checkpointsName)}.`, {
    hint: steps === '' ? 'Start the run again with `rcm-bridge distill`.' : `There are checkpoints of steps ${steps}.`,
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
    const manifest = JSON.parse(fs.readFileSync(join(path, 'manifest.json'), 'utf8')) as CheckpointManifest;
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
