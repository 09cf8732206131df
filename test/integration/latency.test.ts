import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { testPython } from '../python.ts';
import { type Measured, measureCancel, measureCrash, measureHandshake, report } from './latencies.ts';

// Other tests run beside these, so a few tries are judged by the best one, and the limit grows with the time this machine
// takes just now to start Python with the two libraries. The fifty tries whose 95th percentile counts are in
// latency.long.test.ts.
const quietMs = 100;

function slowness(): number {
  const times = Array.from({ length: 5 }, () => {
    const started = performance.now();
    spawnSync(testPython(), ['-P', '-c', 'import zmq, msgspec']);
    return performance.now() - started;
  });
  return Math.max(1, Math.min(...times) / quietMs);
}

test.each([
  ['handshake', () => measureHandshake(8)],
  ['cancel', () => measureCancel(8, false)],
  ['crash', () => measureCrash(8)],
] as const)('%s is fast', async (_, measure: () => Promise<Measured>) => {
  const slow = slowness();
  const measured = await measure();
  process.stderr.write(`${report(measured)}; this machine is ${slow.toFixed(1)} times slow\n`);
  expect(Math.min(...measured.times)).toBeLessThan(measured.limitMs * Math.max(slow, slowness()));
});
