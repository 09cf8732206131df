#!/usr/bin/env bash
# One of the paper's runs from its preset: plan, what is missing, training data, distillation with its evaluation,
# samples, report. Run again after any end, it goes on where it stopped.
#
#     make reproduce-PRESET [STEPS=N] [GPUS=N] [NODES=N] [DRY_RUN=1] [RUN_DIR=DIR] [PROMPTS=FILE] [SAMPLES=N]
#         [ARGS="--set KEY=VALUE ..."]
#
# Where nothing but the training data is missing, the preset's teacher builds them from PROMPTS (one a line), SAMPLES of
# them, after one question (RCM_BRIDGE_YES=1 agrees). The public set for the 1.3B students came from the 14B teacher:
# for that one, call `rcm-bridge data build wan2.1-t2v-14b-480p-rcm` first.
#
# DRY_RUN=1 says what the run takes and what is missing for it, and starts nothing: exit 0, or 3 with something missing.
# Otherwise the exit code is that of the first step that fails; a missed quality gate (6) is told at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:?usage: reproduce.sh PRESET [--set KEY=VALUE]...}
settings=("${@:2}")
run_dir=${RUN_DIR:-runs/reproduce-$preset}
cli=(node bin/rcm-bridge.js)
[ -z "${STEPS:-}" ] || settings+=(--set "schedule.steps=$STEPS")

say() { printf '\n== %s\n' "$*" >&2; }

say "plan: what $preset takes"
machine=()
if [ -n "${GPUS:-}${NODES:-}" ]; then
  machine=(${GPUS:+--gpus "$GPUS"} --nodes "${NODES:-1}")
fi
"${cli[@]}" plan "$preset" "${settings[@]}" "${machine[@]}"
if [ -n "${machine[*]}" ]; then
  # The number of GPUs, and where shards or batch do not divide among so many, the nearest sizes that do.
  changed=$("${cli[@]}" plan "$preset" "${settings[@]}" "${machine[@]}" --json --quiet |
    node -e 'for (const [key, value] of Object.entries(JSON.parse(require("node:fs").readFileSync(0, "utf8")).changed)) console.log(`${key}=${value}`)')
  settings+=(${GPUS:+--set "compute.gpusPerNode=$GPUS"} --set "compute.nodes=${NODES:-1}")
  while IFS= read -r pair; do [ -z "$pair" ] || settings+=(--set "$pair"); done <<<"$changed"
fi

# A run that has begun needs no second look at what it needs: resume finds out.
if [ ! -e "$run_dir/run.json" ] || [ "${DRY_RUN:-}" = 1 ]; then
  lacking=$("${cli[@]}" doctor "$preset" "${settings[@]}" --json --quiet |
    node -e 'console.log(JSON.parse(require("node:fs").readFileSync(0, "utf8")).needs.filter(({ found }) => found === null).map(({ what }) => what).join())') || true
  if [ "$lacking" = data ] && [ -n "${PROMPTS:-}" ] && [ "${DRY_RUN:-}" != 1 ]; then
    say "data build: from $PROMPTS"
    "${cli[@]}" data build "$preset" "${settings[@]}" --prompts "$PROMPTS" ${SAMPLES:+--num "$SAMPLES"} ${GPUS:+--gpus "$GPUS"}
  fi
  say 'doctor: what is here and what is missing'
  "${cli[@]}" doctor "$preset" "${settings[@]}"
fi
if [ "${DRY_RUN:-}" = 1 ]; then
  say 'nothing is missing; without DRY_RUN=1 the run would begin'
  exit
fi

say "distill: in $run_dir"
gates=0
"${cli[@]}" distill "$preset" "${settings[@]}" --run-dir "$run_dir" --if-exists resume --yes || gates=$?
[ "$gates" = 0 ] || [ "$gates" = 6 ] || exit "$gates"

samples=$run_dir/samples/reproduce
if [ ! -e "$samples.done" ]; then
  say "sample: in $samples"
  case $preset in
    wan*) prompts=(--prompts builtin:video-8) ;;
    cosmos*) prompts=(--prompts builtin:image-8) ;;
    *) prompts=() ;;
  esac
  "${cli[@]}" sample "$run_dir" --steps 4 --out "$samples" --yes "${prompts[@]}"
  touch "$samples.done"
fi

say 'report'
"${cli[@]}" report "$run_dir"
exit "$gates"
