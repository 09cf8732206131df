#!/usr/bin/env bash
# Latencies of the border between Node and Python, fifty tries each, printed as 95th percentile, median and worst.
set -euo pipefail
cd "$(dirname "$0")/.."
RCM_TEST_PYTHON=$(node bin/rcm-bridge.js env path)
export RCM_TEST_PYTHON RCM_TEST_LONG=1
node_modules/.bin/vitest run test/integration/latency.long.test.ts "$@"
