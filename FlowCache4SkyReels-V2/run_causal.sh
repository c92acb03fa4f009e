#!/usr/bin/env bash
# SkyReels-V2 with causal blocks, without reuse:  bash run_causal.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method causal
