#!/usr/bin/env bash
# One hash of what dist/ is built from and has to agree with: a bundle made from other sources is refused by it.
set -euo pipefail
cd "$(dirname "$0")/.."
find src schema bin package.json package-lock.json -type f | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c 1-16
