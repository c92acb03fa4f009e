#!/usr/bin/env bash
# Samples Physics-IQ:  DEVICES=0,1,2 bash sample_physicsiq.sh --method teacache [any flag of sample_video.py]
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/sample.sh" "$@" --defaults --benchmark physicsiq
