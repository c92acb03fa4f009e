#!/usr/bin/env bash
# What every sample_*.sh here shares: the environment and the settings of run.sh. What is typed overrides them.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../scripts/env.sh" core
exec "$PYTHON" "$ROOT/FlowCache4SkyReels-V2/sample_video.py" "$@" --defaults \
    --base_num_frames 97 --overlap_history 17 \
    --inference_steps 50 --ar_step 5 --causal_block_size 5 --addnoise_condition 20
