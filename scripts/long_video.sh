#!/usr/bin/env bash
# Time and memory of long videos:  bash scripts/long_video.sh [arguments of long_video.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/long_video.py" "$@"
