import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

interface Manifest {
  readonly step: number;
  readonly files: Readonly<Record<string, unknown>>;
}

interface MetricLine {
  readonly attempt: number;
  readonly step: number;
  readonly phase: string;
  readonly values: Readonly<Record<string, number | string>>;
}

export const readJson = (path: string): Record<string, unknown> => JSON.parse(readFileSync(path, 'utf8'));

export const readLines = <T>(path: string): T[] =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map(line => JSON.parse(line) as T);

/** The one run below `runsDir`. */
export function onlyRun(runsDir: string): string {
  const names = readdirSync(runsDir).filter(name => !name.startsWith('.'));
  if (names.length !== 1) throw new Error(`expected one run in ${runsDir}, found: ${names.join(', ')}`);
  return join(runsDir, names[0] ?? '');
}

/** sha256 of the weights of the last checkpoint, by file: what has to be equal bit by bit after a resume. */
export function finalWeights(runDir: string): Readonly<Record<string, string>> {
  const checkpoints = join(runDir, 'checkpoints');
  const last = readdirSync(checkpoints).sort().at(-1) ?? '';
  const manifest = readJson(join(checkpoints, last, 'manifest.json')) as unknown as Manifest;
  const names = Object.keys(manifest.files).filter(name => name.endsWith('.safetensors'));
  return Object.fromEntries(
    names.map(name => [`${manifest.step}/${name}`, tensorsHash(join(checkpoints, last, name))]),
  );
}

/** Of all but the metadata, which the library writes in random order. */
function tensorsHash(path: string): string {
  const content = readFileSync(path);
  const dataStart = 8 + Number(content.readBigUInt64LE(0));
  const { __metadata__, ...tensors } = JSON.parse(content.toString('utf8', 8, dataStart)) as Record<string, unknown>;
  if (Object.keys(tensors).length === 0) throw new Error(`${path} holds no tensors`);
  return createHash('sha256').update(JSON.stringify(tensors)).update(content.subarray(dataStart)).digest('hex');
}

/** Metrics by step and phase, those of the highest attempt, without what measures time. */
export function metricsByStep(runDir: string): Readonly<Record<string, Readonly<Record<string, number | string>>>> {
  const found: Record<string, Record<string, number | string>> = {};
  const lines = readLines<MetricLine>(join(runDir, 'metrics.ndjson')).sort((a, b) => a.attempt - b.attempt);
  for (const line of lines) {
    const steady = Object.entries(line.values).filter(([name]) => !name.startsWith('time/'));
    found[`${line.step}/${line.phase}`] = Object.fromEntries(steady);
  }
  return found;
}
