#!/usr/bin/env bash
# What every script here shares: the environment and the YAML file. What is typed overrides it.
set -euo pipefail
name="$1"
shift
source "$(dirname -- "${BASH_SOURCE[0]}")/../../../scripts/env.sh" core
folder="$ROOT/FlowCache4MAGI-1"
# As the original's scripts: text encoder and VAE are on the GPU only while they run.
export OFFLOAD_T5_CACHE="${OFFLOAD_T5_CACHE-true}" OFFLOAD_VAE_CACHE="${OFFLOAD_VAE_CACHE-true}"
exec "$PYTHON" "$folder/sample_video.py" "$@" --defaults --yaml_config "$folder/yaml_config/sample/$name.yaml"
