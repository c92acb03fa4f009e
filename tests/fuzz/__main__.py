"""Try hostile inputs and report the faults by their causes.

    python -m tests.fuzz --count 10000 --seed 0
    python -m tests.fuzz --seed 0 --only 4711

Exit code 0: no fault; 1: some. An input depends on the seed, its number and the code.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "tests", ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
#: Seconds and additional bytes that an input may take.
SECONDS, MEMORY = 60, 3 * 2**30


class Overdue(BaseException):
    """An input took too long."""


def _work(connection: Connection, numbers: Sequence[int], sandbox: Any, args: argparse.Namespace) -> None:
    """Send the result of each input, in a process that may hang, run out of memory or die."""
    from .inputs import try_input
    from .programs import Fault, innermost

    def overdue(*_: object) -> None:
        raise Overdue

    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    signal.signal(signal.SIGALRM, overdue)
    for number in numbers:
        signal.alarm(SECONDS)
        try:
            result = try_input(sandbox, args.seed, number)
        except Overdue as error:
            result = ("", [Fault("hang", innermost(error), f"more than {SECONDS} s")])
        signal.alarm(0)
        connection.send(result)


def run_inputs(numbers: Sequence[int], sandbox: Any, args: argparse.Namespace) -> Iterator[tuple]:
    """Yield number, kind, description and faults of each input; a process that dies is replaced."""
    from .programs import Fault

    left, context = list(numbers), multiprocessing.get_context("fork")
    while left:
        ours, theirs = context.Pipe()
        child = context.Process(target=_work, args=(theirs, left, sandbox, args), daemon=True)
        child.start()
        theirs.close()
        try:
            while left:
                if not ours.poll(SECONDS + 30):
                    raise EOFError
                yield (left[0], *ours.recv())
                left.pop(0)
        except EOFError:
            child.kill()
            child.join()
            yield left.pop(0), "", [Fault("crash", f"ended with {child.exitcode}", "")]


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
        from .inputs import Sandbox

        for number, shown, faults in run_inputs(numbers, Sandbox(root), args):
            shown = shown.replace(str(root), "SANDBOX").encode("ascii", "backslashreplace").decode()
            for fault in faults:
                causes[fault.kind, fault.key].append((shown, number, fault.detail))
    for (kind, key), found in sorted(causes.items(), key=lambda item: -len(item[1])):
        shown, number, detail = min(found)
        print(f"{kind}: {key}, {len(found)} times, such as {number}\n  {shown}\n  {detail[-1500:]}")
    print(f"{len(numbers)} inputs in {time.monotonic() - started:.0f} s: {len(causes)} causes of faults")
    return 1 if causes else 0


if __name__ == "__main__":
    sys.exit(main())
