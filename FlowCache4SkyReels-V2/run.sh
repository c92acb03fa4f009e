#!/usr/bin/env bash
# What every run_*.sh here shares: the environment and the settings of a run. What is typed overrides them.
# NPROC=8 makes the video with 8 processes, a GPU each.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/env.sh" core
program=("$PYTHON") settings=(
    --num_frames 177 --base_num_frames 97 --overlap_history 17
    --inference_steps 50 --ar_step 5 --causal_block_size 5 --addnoise_condition 20
)
if [ "${NPROC:-1}" != 1 ]; then
    program+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
    settings+=(--use_usp)
fi
exec "${program[@]}" "$ROOT/FlowCache4SkyReels-V2/generate_video_df.py" "$@" --defaults "${settings[@]}"
