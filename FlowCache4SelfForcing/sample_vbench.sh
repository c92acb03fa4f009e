#!/usr/bin/env bash
# Samples VBench:  DEVICES=0,1,2 bash sample_vbench.sh --method vanilla [any flag of sample_video.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/env.sh" core
exec "$PYTHON" "$ROOT/FlowCache4SelfForcing/sample_video.py" "$@" --defaults --benchmark vbench
