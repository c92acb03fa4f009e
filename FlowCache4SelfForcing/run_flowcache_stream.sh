#!/usr/bin/env bash
# A long video at flat memory, as chunks come out:  bash run_flowcache_stream.sh [any flag of generate_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" "$@" --defaults --method flowcache --num_output_frames 120 --local_attn_size 21
