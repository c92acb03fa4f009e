#!/usr/bin/env bash
# What every run_*.sh here shares: the environment. What is typed overrides the settings of a script.
# NPROC=8 makes the video with 8 processes, a GPU each.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/env.sh" core
launcher=("$PYTHON")
if [ "${NPROC:-1}" != 1 ]; then
    launcher+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
    set -- "$@" --use_usp
fi
exec "${launcher[@]}" "$ROOT/FlowCache4SelfForcing/generate_video.py" "$@"
