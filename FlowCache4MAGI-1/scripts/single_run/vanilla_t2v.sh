#!/usr/bin/env bash
# MAGI-1, no reuse:  bash vanilla_t2v.sh [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" vanilla t2v "$@"
