#!/usr/bin/env bash
# MAGI-1, TeaCache, the baseline:  bash teacache_t2v.sh [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" teacache t2v "$@"
