#!/usr/bin/env bash
# SkyReels-V2 with FlowCache as in the paper, fast:  bash run_flowcache_paper_fast.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --preset paper-fast
