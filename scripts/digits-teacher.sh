#!/usr/bin/env bash
# Makes the shipped classifier and teacher again, and the fixtures that depend on them. Ten minutes and more on one core.
# The data file is made by scripts/make-digits-data.py, which needs scikit-learn.
set -euo pipefail
cd "$(dirname "$0")/.."
node bin/rcm-bridge.js env setup --yes
python=$(node bin/rcm-bridge.js env path)
export PYTHONPATH="$PWD/py:$PWD/kernels"
teacher=py/rcm_sidecar/assets/digits/teacher
run=$(mktemp -d)/teacher

"$python" scripts/make-digits-classifier.py
node bin/rcm-bridge.js pretrain --set compute.threads=1 --set name=digits-teacher --run-dir "$run" "$@"
for file in model.safetensors conditioner.safetensors config.json sampler.json; do
  cp "$run/export/official/$file" "$teacher/$file"
done
# The folder's name of one run has no meaning in the package.
sed -i 's/"runId": *"[^"]*"/"runId": "digits-teacher"/' "$teacher/sampler.json"
"$python" scripts/make-gate-fixtures.py
echo "The report of the teacher: $run/report/index.html" >&2
