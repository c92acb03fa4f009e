#!/usr/bin/env bash
# Asks whether token-level reuse pays:  bash scripts/bench_moving_tokens.sh [arguments of bench_moving_tokens.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/bench_moving_tokens.py" "$@"
