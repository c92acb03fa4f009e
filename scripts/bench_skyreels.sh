#!/usr/bin/env bash
# Measures the methods on SkyReels-V2:  bash scripts/bench_skyreels.sh [arguments of bench_skyreels.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/bench_skyreels.py" "$@"
