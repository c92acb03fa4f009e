#!/usr/bin/env bash
# What every script here shares. A first argument without dashes is a YAML file to take in place of the script's.
set -euo pipefail
name="$1"
shift
source "$(dirname -- "${BASH_SOURCE[0]}")/../../../scripts/env.sh" core
folder="$ROOT/FlowCache4MAGI-1"
config="$folder/yaml_config/sample/$name.yaml"
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    config="$1"
    shift
fi
exec "$PYTHON" "$folder/sample_video.py" --yaml_config "$config" "$@"
