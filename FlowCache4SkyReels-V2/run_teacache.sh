#!/usr/bin/env bash
# SkyReels-V2 with TeaCache, the baseline:  bash run_teacache.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method teacache
