#!/usr/bin/env bash
# What every run_*.sh here shares: the environment. What is typed overrides the settings of a script.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/env.sh" core
exec "$PYTHON" "$ROOT/FlowCache4SelfForcing/generate_video.py" "$@"
