#!/usr/bin/env bash
# Time and memory of long videos:  bash scripts/long_video.sh [arguments of long_video.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
# glibc then gives freed memory back at once; what it keeps for itself would hide what the video needs.
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-262144}"
exec "$PYTHON" "$ROOT/scripts/long_video.py" "$@"
