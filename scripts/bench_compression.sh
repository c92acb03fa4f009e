#!/usr/bin/env bash
# Measures compression at full size:  bash scripts/bench_compression.sh [arguments of bench_compression.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/bench_compression.py" "$@"
