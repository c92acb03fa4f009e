#!/usr/bin/env bash
# Samples VBench:  DEVICES=0,1,2 bash sample_vbench.sh --method teacache [any flag of sample_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sample.sh" "$@" --defaults --benchmark vbench --num_frames 177
