#!/usr/bin/env bash
# MAGI-1, FlowCache as in the paper:  bash flowcache_paper_i2v.sh --image_path first.png [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" flowcache i2v "$@" --defaults --preset paper-fast
