import { percentiles, startFake } from './fake-sidecar.ts';

/** Times of one kind in milliseconds, with the limit the 95th percentile of fifty tries keeps. */
export interface Measured {
  readonly name: string;
  readonly limitMs: number;
  readonly times: readonly number[];
}

/** Spawn to accepted handshake, before torch. */
export async function measureHandshake(tries: number): Promise<Measured> {
  const times: number[] = [];
  for (let attempt = 0; attempt < tries; attempt += 1) {
    const fake = await startFake();
    times.push(fake.sidecar.handshakeMs);
    await fake.close();
  }
  return { name: 'spawn to accepted handshake', limitMs: 300, times };
}

/** `cancel` to the terminal event at a step of 20 ms; with a checkpoint there is no limit, writing takes what it takes. */
export async function measureCancel(tries: number, checkpoint: boolean): Promise<Measured> {
  const fake = await startFake();
  const times: number[] = [];
  for (let attempt = 0; attempt < tries; attempt += 1) {
    fake.events.length = 0;
    await fake.run({ steps: 100_000, stepMs: 20, metrics: 10 });
    await fake.event('progress');
    // Cancel at any point of a step.
    await new Promise(resolve => setTimeout(resolve, 50 + 20 * Math.random()));
    const asked = performance.now();
    void fake.sidecar.request('run.cancel', { checkpoint, deadlineMs: 10_000 });
    await fake.event('end');
    times.push(performance.now() - asked);
  }
  await fake.close();
  const name = `cancel ${checkpoint ? 'with' : 'without'} a checkpoint to the terminal event`;
  return { name, limitMs: checkpoint ? Number.POSITIVE_INFINITY : 100, times };
}

/** SIGKILL of the sidecar to `exited`, its last events handled: an upper bound, the process is gone a little later. */
export async function measureCrash(tries: number): Promise<Measured> {
  const times: number[] = [];
  for (let attempt = 0; attempt < tries; attempt += 1) {
    const fake = await startFake();
    await fake.run({ steps: 100_000, stepMs: 5 });
    await fake.event('progress');
    const killed = performance.now();
    process.kill(fake.sidecar.pid, 'SIGKILL');
    await fake.sidecar.exited;
    times.push(performance.now() - killed);
    await fake.close();
  }
  return { name: 'death of the sidecar to its exit event', limitMs: 50, times };
}

/** One line for people. */
export function report({ name, limitMs, times }: Measured): string {
  const { p50, p95, max } = percentiles(times);
  return `${name}: p95 ${p95} ms, median ${p50} ms, worst ${max} ms of ${times.length} (limit ${limitMs} ms)`;
}
