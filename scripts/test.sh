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
# The kernels' tests are one process for a minute: beside the others, most of which are one process, too.
kernels_log=$(mktemp)
(cd kernels && exec "$python" -m pytest -m 'not long and not gpu' --durations 8 tests) > "$kernels_log" 2>&1 &
kernels=$!
trap 'kill "$kernels" 2> /dev/null || true; rm -f "$kernels_log"' EXIT
"$python" -m pytest -c py/pyproject.toml --rootdir . -m 'not long and not gpu' --durations 12 test/py
failed=0
wait "$kernels" || failed=$?
cat "$kernels_log"
rm -f "$kernels_log"
trap - EXIT
exit "$failed"
