#!/usr/bin/env bash
# The tests of `make test`: both languages, without what is marked long. Prints the slowest of each.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(node bin/rcm-bridge.js env path)
# Small tensors: more threads only wait for each other.
export RCM_TEST_PYTHON="$python" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
export PYTHONPATH="$PWD/.dev:$PWD/py:$PWD/kernels"

bash scripts/lint.sh
node_modules/.bin/vitest run "$@"
"$python" -m pytest -c py/pyproject.toml --rootdir . -m 'not long and not gpu' --durations 12 test/py
(cd kernels && "$python" -m pytest -m 'not long and not gpu' --durations 8 tests)
