import { expect, test } from 'vitest';
import { measureCancel, measureCrash, measureHandshake, report } from './latencies.ts';

// A few tries, judged by the best one, because other tests run beside them: the fifty tries whose 95th percentile counts
// are in latency.long.test.ts.
test.each([
  ['handshake', () => measureHandshake(8)],
  ['cancel', () => measureCancel(8, false)],
  ['crash', () => measureCrash(8)],
] as const)('%s is fast', async (_, measure) => {
  const measured = await measure();
  process.stderr.write(`${report(measured)}\n`);
  expect(Math.min(...measured.times)).toBeLessThan(measured.limitMs);
});
