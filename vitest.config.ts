import { defineConfig } from 'vitest/config';

const long = process.env.RCM_TEST_LONG === '1';

export default defineConfig({
  test: {
    // Sockets of zeromq.js abort the process when a worker thread ends (zeromq.js issue 411): processes, not threads.
    pool: 'forks',
    maxWorkers: 2,
    include: long ? ['test/**/*.long.test.ts'] : ['test/**/*.test.ts'],
    exclude: long ? [] : ['test/**/*.long.test.ts'],
    // For a machine that many share: a test that hangs is as plain after two minutes as after half of one.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    teardownTimeout: 5_000,
    slowTestThreshold: 1_000,
  },
});
