#!/usr/bin/env bash
# A video that starts with --image:  bash run_flowcache_i2v.sh [any flag of generate_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --i2v
