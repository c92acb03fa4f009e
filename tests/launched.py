"""Processes as a launcher starts them."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from flowcache.parallel import Group

# The server that forks them has one thread: a lock that another thread of the tests held would stay shut in a child.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "flowcache.cli", "magi1.adapter", "skyreels_v2.adapter"])


@dataclass(frozen=True)
class Ended:
    """Exit code of a process, or its signal's negative number, and what it wrote."""

    code: int
    out: str
    err: str


def launch(folder: Path, work: Callable[[int], Any], count: int = 2) -> list[Ended]:
    """Run ``work(rank)``, which returns an exit code and can be pickled, with a launcher's variables.

    As torchrun does, SIGTERM ends all once one fails, and SIGKILL 60 seconds later; after 600 seconds, SIGKILL.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folder.mkdir(exist_ok=True)
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    children = []
    for rank in range(count):
        variables = shared | {"RANK": rank, "LOCAL_RANK": rank}
        environment = dict(os.environ) | {name: str(value) for name, value in variables.items()}
        for name in ("out", "err"):
            (folder / f"{rank}.{name}").touch()
        children.append(_SERVER.Process(target=_run, args=(rank, environment, os.getcwd(), folder, work)))
        children[-1].start()
    failed, ends_at = False, time.monotonic() + 600
    while alive := [child for child in children if child.exitcode is None]:
        if not failed and any(child.exitcode for child in children):
            failed, ends_at = True, time.monotonic() + 60
            for child in alive:
                child.terminate()
        if time.monotonic() > ends_at:
            for child in alive:
                child.kill()
        time.sleep(0.05)
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(count)]
    return [Ended(child.exitcode, *text) for child, text in zip(children, texts, strict=True)]


def run_in_group(folder: Path, work: Callable[[Group], Any], count: int) -> Any:
    """Run ``work(group)`` in processes that exchange tensors; all must end well.

    Returns what it returned in the first, as JSON has it.
    """
    ended = launch(folder, partial(_join, work, count), count)
    assert [each.code for each in ended] == [0] * count, "".join(each.err for each in ended)
    return json.loads(ended[0].out.splitlines()[-1])


def _join(work: Callable[[Group], Any], count: int, rank: int) -> None:
    dist.init_process_group("gloo")
    found = work(Group(rank, count))
    dist.destroy_process_group()
    sys.stdout.write(json.dumps(found) + "\n")


def _run(rank: int, environment: dict[str, str], current: str, folder: Path, work: Callable[[int], Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(current)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("out", "err"):
        setattr(sys, f"std{name}", (folder / f"{rank}.{name}").open("w"))
    code = work(rank)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)
