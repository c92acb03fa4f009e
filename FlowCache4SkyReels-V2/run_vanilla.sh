#!/usr/bin/env bash
# SkyReels-V2 as it is, without reuse:  bash run_vanilla.sh [any flag of generate_video_df.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method vanilla
