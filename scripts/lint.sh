#!/usr/bin/env bash
# Formatters, linters and type checkers of both languages; `--write` mends what can be mended.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(node bin/rcm-bridge.js env path)
export PYTHONPATH=.dev:py:kernels

if [ "${1:-}" = --write ]; then
  node_modules/.bin/biome check --write .
  "$python" -m ruff check --fix --config py/pyproject.toml py kernels test/py scripts
  "$python" -m ruff format --config py/pyproject.toml py kernels test/py scripts
  exit
fi

node_modules/.bin/biome check .
node_modules/.bin/tsc -p tsconfig.json
"$python" -m ruff check --config py/pyproject.toml py kernels test/py scripts
"$python" -m ruff format --check --config py/pyproject.toml py kernels test/py scripts
"$python" -m mypy --config-file py/pyproject.toml py/rcm_sidecar
