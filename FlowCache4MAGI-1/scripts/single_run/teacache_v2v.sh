#!/usr/bin/env bash
# MAGI-1, TeaCache, the baseline:  bash teacache_v2v.sh --prefix_video_path in.mp4 [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" teacache v2v "$@"
