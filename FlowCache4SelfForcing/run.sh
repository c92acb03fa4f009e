#!/usr/bin/env bash
# What every run_*.sh here shares: the environment. What is typed overrides the settings of a script.
# NPROC=8 makes the video with 8 processes, a GPU each.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/env.sh" core
program=("$PYTHON") settings=()
if [ "${NPROC:-1}" != 1 ]; then
    program+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
    settings+=(--use_usp)
fi
exec "${program[@]}" "$ROOT/FlowCache4SelfForcing/generate_video.py" "$@" "${settings[@]}"
