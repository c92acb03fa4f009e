#!/usr/bin/env bash
# Measures every reuse policy and forecast:  bash scripts/bench_policies.sh [arguments of bench_policies.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/bench_policies.py" "$@"
