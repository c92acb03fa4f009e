#!/usr/bin/env bash
# What every script here shares: the environment and the settings of a run. What is typed overrides them.
set -euo pipefail
method="$1" mode="$2"
shift 2
source "$(dirname -- "${BASH_SOURCE[0]}")/../../../scripts/env.sh" core
folder="$ROOT/FlowCache4MAGI-1"
# As the original's scripts: text encoder and VAE are on the GPU only while they run.
export OFFLOAD_T5_CACHE="${OFFLOAD_T5_CACHE-true}" OFFLOAD_VAE_CACHE="${OFFLOAD_VAE_CACHE-true}"
exec "$PYTHON" "$folder/generate_video.py" "$@" --defaults --method "$method" --mode "$mode" \
    --config_file "$folder/config/single_run/4.5B_distill.json" \
    --additional_config "$folder/yaml_config/single_run/config.yaml"
