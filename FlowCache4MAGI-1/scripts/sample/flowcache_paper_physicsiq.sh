#!/usr/bin/env bash
# Samples Physics-IQ with MAGI-1, FlowCache as in the paper:  DEVICES=0,1,2 bash flowcache_paper_physicsiq.sh [file.yaml] [any flag or key of sample_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" flowcache_physicsiq "$@" --defaults --preset paper-fast --query_granularity token
