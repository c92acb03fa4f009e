"""Try out hostile inputs, and report the faults by their causes.

    python -m tests.fuzz --count 10000 --seed 0
    python -m tests.fuzz --seed 0 --only 4711

Exit code 0: no input brought a fault to light; 1: some did. An input depends on the seed, its number and the
code, so that a fault is reproduced by its number.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "tests", ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--count", type=int, default=300, help="inputs (default: 300)")
    add("--first", type=int, default=0, help="number of the first (default: 0)")
    add("--seed", type=int, default=0, help="of the random numbers (default: 0)")
    add("--only", type=int, help="number of a single input, whose faults are shown in full")
    add("--kind", help="of the inputs that are tried out (default: all)")
    add("--verbose", action="store_true", help="a line for every input")
    return parser


def main() -> int:
    """Draw, try out, report."""
    args = build_parser().parse_args()
    numbers = range(args.first, args.first + args.count) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory(prefix="flowcache_fuzz_") as folder:
        root = Path(folder) / "sandbox"
        os.environ.update(ENVIRONMENT, HOME=str(root / "home"), FLOWCACHE_CACHE=str(root / "home" / "cache"))
        sys.path[:0] = [str(path) for path in FOLDERS]
        from .report import Report
        from .trials import Trials
        from .workers import run_in_children

        trials, report = Trials(root, args.seed, args.kind), Report()
        numbers = [number for number in numbers if trials.wanted(number)]
        for result in run_in_children(numbers, trials.run, trials.describe):
            report.add(result)
            if args.verbose:
                print(f"{result.number} {result.seconds:.2f} s {result.shown}")
                for fault in result.faults:
                    print(f"  {fault.kind}: {fault.key}", flush=True)
        print(report.text(in_full=args.only is not None))
        return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
