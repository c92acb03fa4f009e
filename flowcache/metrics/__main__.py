"""Measure how close generated videos are to original ones: PSNR, SSIM, LPIPS and ST-LPIPS, frame by frame.

    python -m flowcache.metrics --original_video A --generated_video B

A and B are two files, or two folders whose videos are matched by file name. The values of every frame and the
means are written as CSV and JSON.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..benchmark.samples import save_report
from ..command_line import Parser, check_device, output_stem
from ..running import run_checked
from .compare import METRICS, pair_up


def build_parser() -> ArgumentParser:
    parser = Parser(__doc__, prog="flowcache metrics")
    add, device = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    add("--original_video", type=Path, required=True, help="file or folder to compare with")
    add("--generated_video", type=Path, required=True, help="file or folder to measure")
    add("--output", type=Path, help="CSV and JSON, without suffix (default: beside --generated_video)")
    add("--metrics", nargs="+", choices=METRICS, default=METRICS, help="metrics (default: all)")
    add("--device", default=device, help=f"cpu or cuda (default: {device})")
    return parser


def prepare(args: Namespace) -> Callable[[], str]:
    """Pair the files and check their headers; ValueError names the argument. Returns what measures them."""
    check_device(args.device)
    report, generated = pair_up(args.original_video, args.generated_video, args.metrics), args.generated_video
    report.check()
    default = generated / "metrics" if generated.is_dir() else generated.with_suffix(".metrics")
    output = output_stem("output", args.output or default)

    def run() -> str:
        report.measure(args.device, keep_going=len(report.pairs) > 1)
        return save_report(report, output)

    return run


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    return run_checked(lambda: prepare(args), lambda run: run())


if __name__ == "__main__":
    sys.exit(main())
