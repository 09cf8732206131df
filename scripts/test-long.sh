#!/usr/bin/env bash
# What takes long: kills, soak, fifty tries, other Node versions, the managed environment, the packed package, a browser.
# Installs Debian's Chromium and Slurm when they are missing and apt is there; their tests say so when they have none.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(node bin/rcm-bridge.js env path)
export RCM_TEST_PYTHON="$python" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
export PYTHONPATH="$PWD/.dev:$PWD/py:$PWD/kernels"

if ! command -v chromium >/dev/null && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium
fi
if ! command -v slurmctld >/dev/null && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge
fi

RCM_TEST_LONG=1 node_modules/.bin/vitest run "$@"
"$python" -m pytest -c py/pyproject.toml --rootdir . -m 'long and not gpu' --durations 15 test/py
(cd kernels && "$python" -m pytest -m 'long and not gpu' --durations 10 tests)
