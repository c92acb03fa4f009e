#!/usr/bin/env bash
# Lint, then test:  bash scripts/test.sh [pytest arguments]
# The tests run even if the linter complains, but then this fails.
set -uo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh" dev || exit
cd -- "$ROOT" || exit

lint=0
"$PYTHON" -m ruff check . || lint=1
"$PYTHON" -m ruff format --check . || lint=1
"$PYTHON" -m pytest "$@" || exit
exit "$lint"
