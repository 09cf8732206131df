#!/usr/bin/env bash
# The shipped command line on a GPU machine without Node and without network, from this checkout and the bundle that
# `make gpu-bundle` made:
#   scripts/on-gpu.sh distill digits-rcm --set compute.device=cuda
# Needs a Python with PyTorch and pip: RCM_BRIDGE_PYTHON, else python3. It is not written to: a virtual environment in
# the folder for temporary files sees its packages and those of the bundle. RCM_GPU_BUNDLE names another bundle folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bundle=${RCM_GPU_BUNDLE:-$root/gpu-bundle}

refuse() {
  printf 'on-gpu: %s\n%s\n' "$1" "$2" >&2
  exit 3
}

made_for() { sed -n "s/^$1 //p" "$bundle/bundle.txt"; }

check_bundle() {
  { [ -f "$bundle/bundle.tar.xz" ] && [ -f "$bundle/bundle.txt" ]; } ||
    refuse "there is no bundle in $bundle." 'Where Node and npm are, run: make gpu-bundle. Then bring that folder along with the checkout.'
  [ "$(uname -sm)" = 'Linux x86_64' ] ||
    refuse "the bundle is for Linux on x86-64; this is $(uname -sm)." 'Install Node and use: node bin/rcm-bridge.js'
  [ "$(made_for sources)" = "$("$root/scripts/sources-hash.sh")" ] ||
    refuse 'the bundle was made from other sources than this checkout has.' 'Make it again: make gpu-bundle'
}

# Prints the version of the interpreter and of its torch (or none), then the folders of its packages.
python_facts='
import importlib.util, os, site, sys
from importlib import metadata
spec = importlib.util.find_spec("torch")
print("%d.%d" % sys.version_info[:2], metadata.version("torch") if spec else "none")
folders = [*site.getsitepackages(), *([os.path.dirname(os.path.dirname(spec.origin))] if spec else [])]
print("\n".join(dict.fromkeys(folders)))
'

check_python() {
  local name=${RCM_BRIDGE_PYTHON:-python3} wanted version torch major minor
  wanted=$(made_for python)
  python=$(command -v "$name") ||
    refuse "there is no Python $name." "Name a Python $wanted that has PyTorch: RCM_BRIDGE_PYTHON=/path/to/python3"
  facts=$("$python" -c "$python_facts") || refuse "$python does not start." 'Name another one: RCM_BRIDGE_PYTHON=/path/to/python3'
  read -r version torch <<< "$facts"
  [ "$version" = "$wanted" ] ||
    refuse "$python is Python $version; the bundle has packages for $wanted." \
      "Name a Python $wanted by RCM_BRIDGE_PYTHON, or make the bundle for this one: make gpu-bundle ARGS=\"--python $version\""
  [ "$torch" != none ] || refuse "$python has no PyTorch." 'Name one that has, by RCM_BRIDGE_PYTHON=/path/to/python3'
  IFS=. read -r major minor _ <<< "$torch"
  [ "$((major * 1000 + minor))" -ge 2011 ] ||
    refuse "$python has PyTorch $torch; the sidecar needs 2.11 or newer." 'Name another one: RCM_BRIDGE_PYTHON=/path/to/python3'
  "$python" -m pip --version > /dev/null 2>&1 || refuse "$python has no pip." "Add it: $python -m ensurepip"
}

# An environment that sees the bundle's wheels first (a newer numpy may be installed), then the interpreter's packages.
make_environment() {
  local at=$1 wheels=$2
  "$python" -m venv --without-pip "$at"
  "$python" -m pip --isolated --quiet --disable-pip-version-check --python "$at/bin/python3" \
    install --no-index --no-deps --no-compile --no-cache-dir "$wheels"/*.whl
  tail -n +2 <<< "$facts" | "$at/bin/python3" -c '
import sys, sysconfig
lines = [f"import site; site.addsitedir({line.rstrip()!r})\n" for line in sys.stdin]
open(sysconfig.get_paths()["purelib"] + "/packages-of-the-machine.pth", "w").writelines(lines)'
}

# Unpacks into a folder of its own, which takes its final name only when all is there.
unpack() {
  temporary=$(mktemp -d "$store/unpacking-XXXXXX")
  trap 'rm -rf "$temporary"' EXIT
  echo "on-gpu: unpacking into $place" >&2
  if command -v xz > /dev/null; then
    tar -xJf "$bundle/bundle.tar.xz" -C "$temporary"
  else
    "$python" -m tarfile -e "$bundle/bundle.tar.xz" "$temporary"
  fi
  make_environment "$temporary/python" "$temporary/wheels"
  # bin/ as a copy: it looks for dist/ beside its real place.
  cp -R "$root/bin" "$temporary/bin"
  for name in package.json schema configs py kernels; do ln -s "$root/$name" "$temporary/$name"; done
  # Another process may have been faster; its folder is as good.
  mv -T "$temporary" "$place" 2> /dev/null || [ -d "$place" ]
}

check_bundle
check_python
store=${TMPDIR:-/tmp}/rcm-bridge-gpu-$(id -u)
mkdir -p -m 700 "$store"
[ -O "$store" ] || refuse "$store belongs to somebody else." 'Name another folder for temporary files: TMPDIR=/path'
key=$( { sha256sum < "$bundle/bundle.tar.xz"; printf '%s\n' "$root" "$python" "$facts"; } | sha256sum | cut -c 1-16)
place=$store/$key
[ -d "$place" ] || (unpack)

export PATH="$place/node/bin:$PATH" RCM_BRIDGE_PYTHON="$place/python/bin/python3"
exec node "$place/bin/rcm-bridge.js" "$@"
