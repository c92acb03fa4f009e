#!/usr/bin/env bash
# The documentation site, in outputs/site:  bash scripts/docs.sh [serve] [mkdocs arguments]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" docs
cd -- "$ROOT"

command=build
[ "${1:-}" != serve ] || { command=serve; shift; }
export NO_MKDOCS_2_WARNING=1
exec "$PYTHON" -m mkdocs "$command" "$@"
