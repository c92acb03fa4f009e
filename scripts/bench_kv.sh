#!/usr/bin/env bash
# Measures KV compression:  bash scripts/bench_kv.sh [arguments of bench_kv.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/bench_kv.py" "$@"
