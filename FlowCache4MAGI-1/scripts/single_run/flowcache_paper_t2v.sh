#!/usr/bin/env bash
# MAGI-1, FlowCache as in the paper:  bash flowcache_paper_t2v.sh [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" flowcache t2v "$@" --defaults --preset paper-fast
