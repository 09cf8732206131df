import { expect, test } from 'vitest';
import { percentiles } from './fake-sidecar.ts';
import { measureCancel, measureCrash, measureHandshake, report } from './latencies.ts';
import { killParent } from './orphans.ts';

const tries = 50;

test.each([
  ['handshake', () => measureHandshake(tries)],
  ['cancel', () => measureCancel(tries, false)],
  ['cancel with a checkpoint', () => measureCancel(tries, true)],
  ['crash', () => measureCrash(tries)],
] as const)(
  '%s: the 95th percentile keeps its limit',
  async (_, measure) => {
    const measured = await measure();
    process.stderr.write(`${report(measured)}\n`);
    expect(percentiles(measured.times).p95).toBeLessThan(measured.limitMs);
  },
  120_000,
);

test.each([
  ['training', { at: 2, fault: 'nothing' }],
  ['holding the interpreter lock', { at: 2, fault: 'gil' }],
])(
  'after SIGKILL of Node (%s) no process is left after a second, twenty times',
  async (name, script) => {
    const times: number[] = [];
    for (let attempt = 0; attempt < 20; attempt += 1)
      times.push(await killParent({ steps: 100_000, stepMs: 5, ...script }, 100 * Math.random()));
    process.stderr.write(`${report({ name: `SIGKILL of Node to no process, ${name}`, limitMs: 1_000, times })}\n`);
    expect(Math.max(...times)).toBeLessThan(1_000);
  },
  120_000,
);
