#!/usr/bin/env bash
# Makes what is shipped in py/rcm_sidecar/assets/digits again: data, classifier, teacher; and the fixtures of the gates'
# tests, which depend on them. Arguments go to `pretrain`. The data file needs scikit-learn and stays as it is without.
set -euo pipefail
cd "$(dirname "$0")/.."
node bin/rcm-bridge.js env setup --yes >&2
python=$(node bin/rcm-bridge.js env path)
export PYTHONPATH="$PWD/.dev:$PWD/py:$PWD/kernels" PYTHONDONTWRITEBYTECODE=1
teacher=py/rcm_sidecar/assets/digits/teacher

if "$python" -c 'import sklearn' 2>/dev/null; then
  "$python" scripts/make-digits-data.py
else
  echo 'scikit-learn is not installed: digits.safetensors stays as it is.' >&2
fi
"$python" scripts/make-digits-classifier.py

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
node bin/rcm-bridge.js pretrain --python "$python" --run-dir "$folder/run" --set compute.threads=1 "$@"
id=$(node -p 'require(process.argv[1]).id' "$folder/run/run.json")
cp "$folder"/run/export/official/* "$teacher/"
# A fixed word in place of the run's id: a run with the same weights leaves the same files.
sed -i.old "s/$id/pretrain-digits/" "$teacher/README.md" "$teacher/sampler.json"
rm "$teacher/README.md.old" "$teacher/sampler.json.old"
"$python" scripts/make-gate-fixtures.py --cache "$folder/cache"
echo "The evaluation of the teacher, for README.md in py/rcm_sidecar/assets/digits:"
cat "$folder"/run/evaluation/*.json
