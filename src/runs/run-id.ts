import { randomBytes } from 'node:crypto';

const alphabet = 'abcdefghijklmnopqrstuvwxyz234567';
const longestName = 60;

/** A run id: UTC time, config name, four random base32 characters, e.g. `20261122-183701-digits-rcm-k3f9`. */
export function newRunId(name: string, now: Date = new Date()): string {
  const [day = '', clock = ''] = now
    .toISOString()
    .replace(/[-:]|\.\d+Z/g, '')
    .split('T');
  return `${day}-${clock}-${fileName(name)}-${randomSuffix()}`;
}

export const runIdPattern = /^\d{8}-\d{6}-[a-z0-9._-]+-[a-z2-7]{4}$/;

/** The config's name with only what is safe in a folder name on every system. */
function fileName(name: string): string {
  const safe = name
    .toLowerCase()
    .replace(/[^a-z0-9._-]+/g, '-')
    .replace(/^[-.]+|[-.]+$/g, '')
    .slice(0, longestName);
  return safe === '' ? 'run' : safe;
}

function randomSuffix(): string {
  return Array.from(randomBytes(4), byte => alphabet[byte % alphabet.length]).join('');
}

/** `step-00000350`: the folder of a step, in an order that sorts. */
export function stepName(step: number): string {
  return `step-${String(step).padStart(8, '0')}`;
}

export function stepOf(name: string): number | undefined {
  const match = /^step-(\d{8,})$/.exec(name);
  return match ? Number(match[1]) : undefined;
}
