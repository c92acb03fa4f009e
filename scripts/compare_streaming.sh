#!/usr/bin/env bash
# Streaming against windows that overlap:  bash scripts/compare_streaming.sh [arguments of compare_streaming.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/compare_streaming.py" "$@"
