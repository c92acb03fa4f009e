#!/usr/bin/env bash
# MAGI-1, TeaCache, the baseline:  bash teacache_i2v.sh --image_path first.png [any flag of generate_video.py, any key of the configuration]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" teacache i2v "$@"
