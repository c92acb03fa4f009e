"""Measure how close generated videos are to original ones: PSNR, SSIM and LPIPS, frame by frame.

    python -m flowcache.metrics --original_video A --generated_video B

A and B are two files, or two folders whose videos are matched by file name. Writes every frame and the means
as CSV and JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..command_line import Parser, check_device, output_file
from ..running import run_checked
from .compare import METRICS, Comparison, Metric, Pairing, check_alike, compare_files, pair_up
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
    reasons = []
    for original, generated in pairing.pairs.values():
        try:
            check_alike(original, generated)
        except ValueError as error:
            reasons.append(str(error))
    if len(reasons) == len(pairing.pairs):
        raise ValueError(reasons[0])
    args.output = args.output or _default_output(args.generated_video)
    output_file("output", Path(f"{args.output}.json"))
    return pairing


def _default_output(generated: Path) -> Path:
    return generated / "metrics" if generated.is_dir() else generated.with_suffix(".metrics")


def run(args: argparse.Namespace, pairing: Pairing) -> str:
    """Measure, write, and return what to say.

    Raises:
        ValueError: a file breaks off, or is longer than its header says; of folders, the others are measured.
    """
    broken = []

    def compare(original: Path, generated: Path, metrics: Mapping[str, Metric], device: str) -> Comparison:
        try:
            return compare_files(original, generated, metrics, device)
        except ValueError as error:
            if len(pairing.pairs) == 1:
                raise
            broken.append(generated)
            return Comparison(missing=dict.fromkeys(args.metrics, str(error).rstrip(".")))

    report = measure(args.original_video, args.generated_video, args.metrics, args.device, pairing, compare)
    text = "\n".join([report.text(), *map(str, report.save(args.output))])
    if broken:
        raise ValueError(f"{len(broken)} of {len(pairing.pairs)} videos could not be measured.\n{text}")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, measure; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args(arguments)
    return run_checked(lambda: prepare(args), lambda pairing: run(args, pairing))


if __name__ == "__main__":
    sys.exit(main())
