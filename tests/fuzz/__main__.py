"""Try hostile inputs and report the faults by their causes.

    python -m tests.fuzz --count 10000 --seed 0
    python -m tests.fuzz --seed 0 --only 4711

Exit code 0: no fault; 1: some. An input depends on the seed, its number and the code.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "tests", ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
#: Seconds and additional bytes that an input may take.
SECONDS, MEMORY = 60, 3 * 2**30


def limit_process() -> None:
    """Silence a process and bound its memory."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def main() -> int:
    """Run each input in a process of its own and print the faults, each cause with its shortest input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="number of inputs (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--only", type=int, help="number of a single input")
    args = parser.parse_args()
    numbers = range(args.count) if args.only is None else [args.only]
    started, causes = time.monotonic(), defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="flowcache_fuzz_") as folder:
        root = Path(folder) / "sandbox"
        os.environ.update(ENVIRONMENT, HOME=str(root / "home"), FLOWCACHE_CACHE=str(root / "home" / "cache"))
        sys.path[:0] = [str(path) for path in FOLDERS]
        from .inputs import PROGRAMS, make_sandbox, read_options, try_input

        make_sandbox(root)
        for name in PROGRAMS:
            read_options(name)  # imports here what each input needs
        for number in numbers:
            with multiprocessing.get_context("fork").Pool(1, limit_process) as pool:
                try:
                    shown, fault = pool.apply_async(try_input, (root, args.seed, number)).get(SECONDS)
                except multiprocessing.TimeoutError:
                    shown, fault = "", ("hang", f"crashed or took more than {SECONDS} s", "")
            shown = shown.replace(str(root), "SANDBOX").encode("ascii", "backslashreplace").decode()
            if fault:
                kind, key, detail = fault
                causes[kind, key].append((shown, number, detail))
    for (kind, key), found in sorted(causes.items(), key=lambda item: -len(item[1])):
        shown, number, detail = min(found)
        print(f"{kind}: {key}, {len(found)} times, such as {number}\n  {shown}\n  {detail[-1500:]}")
    print(f"{len(numbers)} inputs in {time.monotonic() - started:.0f} s: {len(causes)} causes of faults")
    return 1 if causes else 0


if __name__ == "__main__":
    sys.exit(main())
