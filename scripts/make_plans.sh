#!/usr/bin/env bash
# Makes plans of the steps to compute:  bash scripts/make_plans.sh [arguments of make_plans.py]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" core
exec "$PYTHON" "$ROOT/scripts/make_plans.py" "$@"
