#!/usr/bin/env bash
# Samples Physics-IQ with MAGI-1, TeaCache, the baseline:  DEVICES=0,1,2 bash teacache_physicsiq.sh [file.yaml] [any flag or key of sample_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" teacache_physicsiq "$@"
