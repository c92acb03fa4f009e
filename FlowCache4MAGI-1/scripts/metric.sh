#!/usr/bin/env bash
# PSNR, SSIM, LPIPS, ST-LPIPS:  bash metric.sh --original_video A --generated_video B [any flag of python -m flowcache.metrics]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/env.sh" core
exec "$PYTHON" -m flowcache.metrics "$@"
