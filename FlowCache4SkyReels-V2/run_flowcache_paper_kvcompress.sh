#!/usr/bin/env bash
# SkyReels-V2 with FlowCache and a compressed cache as in the paper:  bash run_flowcache_paper_kvcompress.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --preset paper-fast --use_compress --budget_block 1
