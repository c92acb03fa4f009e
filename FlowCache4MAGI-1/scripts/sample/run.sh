#!/usr/bin/env bash
# What every script here shares: the environment and the YAML file. What is typed overrides it.
set -euo pipefail
name="$1"
shift
source "$(dirname -- "${BASH_SOURCE[0]}")/../../../scripts/env.sh" core
folder="$ROOT/FlowCache4MAGI-1"
exec "$PYTHON" "$folder/sample_video.py" "$@" --defaults --yaml_config "$folder/yaml_config/sample/$name.yaml"
