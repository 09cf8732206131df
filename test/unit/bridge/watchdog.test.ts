import { expect, test } from 'vitest';
import { createWatchdog, defaultBudgets } from '../../../src/bridge/watchdog.ts';

const budgets = { ...defaultBudgets, noHeartbeatMs: 10_000, trainingMs: 60_000, firstStepMs: 500_000 };

test('no heartbeat is told apart from no step', () => {
  const dog = createWatchdog(0, budgets);
  dog.seen('training', 1, 0);
  expect(dog.check(10_000)).toBeUndefined();
  expect(dog.check(10_001)).toBe('noHeartbeat');
  for (let now = 0; now <= 600_000; now += 1_000) dog.alive(now);
  expect(dog.check(600_000)).toBe('noStep');
});

test('a step may take 20 times its usual time, and at least the budget; the first one has its own', () => {
  const dog = createWatchdog(0, budgets);
  dog.seen('training', 0, 0);
  dog.alive(499_000);
  expect(dog.check(499_000)).toBeUndefined();
  dog.seen('training', 1, 10_000);
  dog.seen('training', 2, 20_000);
  dog.alive(220_000);
  expect(dog.check(220_000)).toBeUndefined();
  dog.alive(220_001);
  expect(dog.check(220_001)).toBe('noStep');
});

test('short steps get the least budget', () => {
  const dog = createWatchdog(0, budgets);
  for (let step = 0; step < 10; step += 1) dog.seen('training', step, step * 100);
  dog.alive(60_900);
  expect(dog.check(60_900)).toBeUndefined();
  dog.alive(60_901);
  expect(dog.check(60_901)).toBe('noStep');
});

test('idle, paused and a process that was itself asleep are no hang', () => {
  const dog = createWatchdog(0, { ...budgets, checkpointingMs: 1_000 });
  dog.seen('idle', 0, 0);
  dog.alive(1e9);
  expect(dog.check(1e9)).toBeUndefined();
  dog.seen('checkpointing', 5, 1e9);
  dog.pause(true, 1e9);
  dog.alive(2e9);
  expect(dog.check(2e9)).toBeUndefined();
  dog.pause(false, 2e9);
  expect(dog.check(2e9 + 1_001)).toBe('noStep');
  dog.forgive(3e9);
  expect(dog.check(3e9 + 1_000)).toBeUndefined();
});
