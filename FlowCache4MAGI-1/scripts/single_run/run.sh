#!/usr/bin/env bash
# What every script here shares: the environment and the settings of a run. What is typed overrides them.
# GPUS_PER_NODE=8 makes the video with 8 processes, a GPU each.
set -euo pipefail
method="$1" mode="$2"
shift 2
source "$(dirname -- "${BASH_SOURCE[0]}")/../../../scripts/env.sh" core
folder="$ROOT/FlowCache4MAGI-1"
# As the original's scripts: text encoder and VAE are on the GPU only while they run.
export OFFLOAD_T5_CACHE="${OFFLOAD_T5_CACHE-true}" OFFLOAD_VAE_CACHE="${OFFLOAD_VAE_CACHE-true}"
program=("$PYTHON") settings=(
    --method "$method" --mode "$mode" --config_file "$folder/config/single_run/4.5B_distill.json"
    --additional_config "$folder/yaml_config/single_run/config.yaml"
)
if [ "${GPUS_PER_NODE:-1}" != 1 ]; then
    program+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS_PER_NODE")
    settings+=(--cp_size "$GPUS_PER_NODE")
fi
exec "${program[@]}" "$folder/generate_video.py" "$@" --defaults "${settings[@]}"
