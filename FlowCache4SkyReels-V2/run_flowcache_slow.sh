#!/usr/bin/env bash
# SkyReels-V2 with FlowCache, closer and slower than fast:  bash run_flowcache_slow.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --preset quality
