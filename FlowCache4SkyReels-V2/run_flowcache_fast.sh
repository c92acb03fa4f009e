#!/usr/bin/env bash
# SkyReels-V2 with FlowCache, the fast preset:  bash run_flowcache_fast.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --preset fast
