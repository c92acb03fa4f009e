#!/usr/bin/env bash
# The paper's tables:  bash scripts/reproduce_tables.sh [--model small|official] [--prompts N] [...]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/reproduce_tables.py" "$@"
