#!/usr/bin/env bash
# SkyReels-V2 with FlowCache and a compressed cache:  bash run_flowcache_kvcompress.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --preset balanced --use_compress --budget_block 1
