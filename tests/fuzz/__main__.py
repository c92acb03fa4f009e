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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "tests", ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
#: Seconds and additional bytes that an input may take.
SECONDS, MEMORY = 60, 3 * 2**30


def _work(connection: Connection, *drawn: Any) -> None:
    """Send the result of an input, in a process that may hang, run out of memory or die."""
    from .inputs import try_input

    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    connection.send(try_input(*drawn))


def run_input(sandbox: Any, seed: int, number: int) -> tuple:
    """Description and fault of an input, which a process of its own tries."""
    from .inputs import Fault

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(theirs, sandbox, seed, number), daemon=True)
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else ("", Fault("hang", f"more than {SECONDS} s", ""))
    except EOFError:
        child.join()
        return "", Fault("crash", f"ended with {child.exitcode}", "")
    finally:
        child.kill()
        child.join()


def main() -> int:
    """Run the inputs and print the faults, each cause with its shortest input."""
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
        from .inputs import PROGRAMS, Sandbox

        sandbox = Sandbox(root)
        for program in PROGRAMS.values():
            assert program.options  # imports here what each input needs
        for number in numbers:
            shown, fault = run_input(sandbox, args.seed, number)
            shown = shown.replace(str(root), "SANDBOX").encode("ascii", "backslashreplace").decode()
            if fault:
                kind, key, detail = fault.args
                causes[kind, key].append((shown, number, detail))
    for (kind, key), found in sorted(causes.items(), key=lambda item: -len(item[1])):
        shown, number, detail = min(found)
        print(f"{kind}: {key}, {len(found)} times, such as {number}\n  {shown}\n  {detail[-1500:]}")
    print(f"{len(numbers)} inputs in {time.monotonic() - started:.0f} s: {len(causes)} causes of faults")
    return 1 if causes else 0


if __name__ == "__main__":
    sys.exit(main())
