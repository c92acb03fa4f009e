#!/usr/bin/env bash
# SkyReels-V2 with FlowCache, as one staircase on a compressed cache:  bash run_flowcache_streaming.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --preset balanced --streaming --num_frames 377 --use_compress --budget_block 4
