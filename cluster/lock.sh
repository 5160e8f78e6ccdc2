#!/usr/bin/env bash
# lock.sh [REQUIREMENT ...]: write image.lock, every package of the image by version and hash, with uv (`pip install uv`).
# Versions are those of constraints.txt, or else those already in image.lock. What your environments need is added by name:
#   cluster/lock.sh 'gymnasium[mujoco]'
set -euo pipefail
cd "$(dirname "$0")/.."
printf '%s\n' "$@" | uv pip compile --quiet pyproject.toml - --extra cloud --extra minari --extra tensorboard \
    --constraints cluster/constraints.txt --generate-hashes --only-binary :all: --custom-compile-command cluster/lock.sh \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file cluster/image.lock >/dev/null
