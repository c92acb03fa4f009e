"""Measure how close generated videos are to original ones: PSNR, SSIM and LPIPS, frame by frame.

    python -m flowcache.metrics --original_video A --generated_video B

A and B are two files, or two folders whose videos are matched by file name. Writes every frame and the means
as CSV and JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..command_line import Parser, check_device, output_file, run_checked
from .compare import METRICS, Pairing, check_alike, pair_up
from .report import measure


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--original_video", type=Path, required=True, help="what to be close to: a file or a folder")
    add("--generated_video", type=Path, required=True, help="what to measure: a file or a folder")
    add("--output", type=Path, help="of CSV and JSON, without suffix (default: beside what was measured)")
    add("--metrics", nargs="+", choices=METRICS, default=METRICS, help="(default: all)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def prepare(args: argparse.Namespace) -> Pairing:
    """Check all that was asked for, and fill in where the output goes.

    Raises:
        ValueError: one sentence that names the argument.
    """
    check_device(args.device)
    pairing = pair_up(args.original_video, args.generated_video)
    for original, generated in pairing.pairs.values():
        check_alike(original, generated)
    args.output = args.output or _default_output(args.generated_video)
    output_file("output", Path(f"{args.output}.json"))
    return pairing


def _default_output(generated: Path) -> Path:
    return generated / "metrics" if generated.is_dir() else generated.with_suffix(".metrics")


def run(args: argparse.Namespace, pairing: Pairing) -> str:
    """Measure, write, and return what to say.

    Raises:
        ValueError: a file breaks off, or is longer than its header says.
    """
    report = measure(args.original_video, args.generated_video, args.metrics, args.device, pairing)
    paths = report.save(args.output)
    return "\n".join([report.text(), *map(str, paths)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, measure; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args(arguments)
    return run_checked(lambda: prepare(args), lambda pairing: run(args, pairing))


if __name__ == "__main__":
    sys.exit(main())
