import { afterEach, beforeEach, expect, test } from 'vitest';
import { type TestBridge, testBridges } from './fake-run.ts';
import { percentiles } from './fake-sidecar.ts';

let bridges: TestBridge;
beforeEach(() => {
  bridges = testBridges();
});
afterEach(() => bridges.clean());

const tries = 50;

/** From `cancel` to the terminal event a reader sees, at a step of 20 ms. */
async function cancelTimes(checkpoint: boolean): Promise<number[]> {
  const times: number[] = [];
  for (let attempt = 0; attempt < tries; attempt++) {
    const bridge = await bridges.open({ steps: 50_000, stepMs: 20 });
    const run = await bridge.distill('digits-rcm', { set: { 'evaluation.gates': [] } });
    for await (const event of run.events({ types: ['metric'] })) if (event.type === 'metric') break;
    const asked = performance.now();
    void run.cancel({ checkpoint });
    for await (const event of run) if (event.type === 'end') times.push(performance.now() - asked);
    await bridge.close();
  }
  return times;
}

test('cancel without a checkpoint reaches the terminal event in less than 100 ms', async () => {
  const measured = percentiles(await cancelTimes(false));
  process.stdout.write(`cancel without checkpoint to end, ${tries} tries, ms: ${JSON.stringify(measured)}\n`);
  expect(measured.p95).toBeLessThan(100);
}, 300_000);

test('cancel with a checkpoint is measured', async () => {
  const measured = percentiles(await cancelTimes(true));
  process.stdout.write(`cancel with an empty checkpoint to end, ${tries} tries, ms: ${JSON.stringify(measured)}\n`);
  expect(measured.p95).toBeLessThan(5_000);
}, 300_000);
