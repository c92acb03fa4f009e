#!/usr/bin/env bash
# Measures the methods on MAGI-1:  bash scripts/bench_magi.sh [arguments of bench_magi.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/bench_magi.py" "$@"
