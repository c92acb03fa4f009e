#!/usr/bin/env bash
# Measures FlowCache against other caches:  bash scripts/bench_peers.sh [arguments of bench_peers.py]
# cache-dit takes part if it is installed:  pip install -e '.[bench]'
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
export CACHE_DIT_LOG_LEVEL="${CACHE_DIT_LOG_LEVEL:-ERROR}" # else ten lines for every run
exec "$PYTHON" "$ROOT/scripts/bench_peers.py" "$@"
