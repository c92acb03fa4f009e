#!/usr/bin/env bash
# Checks on a CUDA device, offline, in 20 minutes:  bash scripts/check_gpu.sh [--minutes M] [--only SECTION ...] [...]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
cd -- "$ROOT"
export HF_HUB_OFFLINE=1 PYTHONPATH="$ROOT:$ROOT/FlowCache4MAGI-1:$ROOT/FlowCache4SkyReels-V2:$ROOT/FlowCache4SelfForcing${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m research.gpu "$@"
