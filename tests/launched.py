"""Processes as a launcher starts them, forked from the tests' own."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import distributed as dist

from flowcache.environment import repository_commit
from flowcache.parallel import Group


@dataclass(frozen=True)
class Ended:
    """Exit code of a process, or its signal's negative number, and what it wrote."""

    code: int
    out: str
    err: str


def launch(folder: Path, work: Callable[[int], Any], count: int = 2, grace: float = 60) -> list[Ended]:
    """Run ``work(rank)``, which returns an exit code, in processes with a launcher's variables.

    As torchrun does, SIGTERM ends all once one fails, and SIGKILL ``grace`` seconds later.
    """
    repository_commit()  # cached for the children
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    folder.mkdir(exist_ok=True)
    children = [context.Process(target=_run, args=(rank, count, store.port, folder, work)) for rank in range(count)]
    for child in children:
        child.start()
    failed_at = None
    while alive := [child for child in children if child.exitcode is None]:
        if failed_at is None and any(child.exitcode for child in children):
            failed_at = time.monotonic()
            for child in alive:
                child.terminate()
        if failed_at and time.monotonic() > failed_at + grace:
            for child in alive:
                child.kill()
        time.sleep(0.05)
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(count)]
    return [Ended(child.exitcode, *text) for child, text in zip(children, texts, strict=True)]


def run_in_group(folder: Path, work: Callable[[Group], Any], count: int) -> Any:
    """Run ``work(group)`` in processes that exchange tensors; all must end well.

    Returns what it returned in the first, as JSON has it.
    """

    def join(rank: int) -> None:
        dist.init_process_group("gloo")
        found = work(Group(rank, count))
        dist.destroy_process_group()
        sys.stdout.write(json.dumps(found) + "\n")

    ended = launch(folder, join, count)
    assert [each.code for each in ended] == [0] * count, "".join(each.err for each in ended)
    return json.loads(ended[0].out.splitlines()[-1])


def _run(rank: int, count: int, port: int, folder: Path, work: Callable[[int], Any]) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in variables.items()})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("out", "err"):
        setattr(sys, f"std{name}", (folder / f"{rank}.{name}").open("w"))
    code = work(rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)
