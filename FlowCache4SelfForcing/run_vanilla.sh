#!/usr/bin/env bash
# The originals' video, without FlowCache:  bash run_vanilla.sh [any flag of generate_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method vanilla
