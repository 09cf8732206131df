#!/usr/bin/env bash
# Latencies of the border between Node and Python, fifty tries each: prints them and fails where one misses its limit.
set -euo pipefail
cd "$(dirname "$0")/.."
RCM_TEST_PYTHON=$(node bin/rcm-bridge.js env path)
export RCM_TEST_PYTHON OMP_NUM_THREADS=1
RCM_TEST_LONG=1 node_modules/.bin/vitest run test/integration/latency.long.test.ts "$@"
