#!/usr/bin/env bash
# MAGI-1, FlowCache as in the paper:  bash flowcache_paper_v2v.sh --prefix_video_path in.mp4 [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" flowcache v2v "$@" --defaults --preset paper-fast
