#!/usr/bin/env bash
# The tests of `make test`: both languages, without what is marked long. Prints the slowest of each.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(node bin/rcm-bridge.js env path)
export RCM_TEST_PYTHON="$python" PYTHONPATH=.dev:py:kernels PYTHONDONTWRITEBYTECODE=1

bash scripts/lint.sh
node_modules/.bin/vitest run "$@"
"$python" -m pytest -c py/pyproject.toml --rootdir . -m 'not long' -q --durations 15 test/py
"$python" -m pytest -c kernels/pyproject.toml --rootdir kernels -m 'not long and not gpu' -q --durations 10 kernels/tests
