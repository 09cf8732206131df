#!/usr/bin/env bash
# Formatters, linters and type checkers of both languages; `--write` mends what can be mended.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(node bin/rcm-bridge.js env path)
export PYTHONPATH="$PWD/.dev:$PWD/py:$PWD/kernels"

# kernels/ is a package of its own, with rules of its own.
ruff() {
  "$python" -m ruff "$@" --config py/pyproject.toml py test/py scripts
  (cd kernels && "$python" -m ruff "$@" .)
}

if [ "${1:-}" = --write ]; then
  node_modules/.bin/biome check --write .
  ruff check --fix
  ruff format
  exit
fi

node_modules/.bin/biome check .
node_modules/.bin/tsc -p tsconfig.json
ruff check --quiet
ruff format --check --quiet
"$python" -m mypy --config-file py/pyproject.toml py/rcm_sidecar
