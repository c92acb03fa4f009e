"""Checks, what they find, and sections of checks in processes of their own."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from flowcache.environment import prepare_device, restart_peak_memory, synchronize

#: Seconds that a section may exceed its time, in which a check that has begun can end.
GRACE = 60

#: What a check measured, by the title of the column, which names the unit.
Row = dict[str, Any]

#: Fills in a row and returns a note, if any; raises Failed, Skipped or any other exception.
Check = Callable[[Row], str | None]


class Failed(Exception):
    """What was measured is not what must be; the message says how."""


class Skipped(Exception):
    """The check cannot run here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """Where checks run.

    Attributes:
        device: ``cpu`` or a CUDA device.
        reduced: tiny sizes, for a machine without a GPU.
        stop: time, as of ``time.time``, after which no check begins.
    """

    device: str
    reduced: bool
    stop: float

    @property
    def left(self) -> float:
        """Seconds until ``stop``."""
        return self.stop - time.time()

    def needs_seconds(self, seconds: float) -> None:
        """Skip the check if less time is left."""
        if seconds > self.left:
            skip(f"it takes about {seconds:.0f} s, and {max(self.left, 0):.0f} were left; --minutes gives more")

    @cached_property
    def on_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def synchronize(self) -> None:
        synchronize(self.device)


@dataclass(frozen=True)
class Section:
    """Checks of one kind; ``minutes`` is its share of the time, relative to the others'."""

    name: str
    title: str
    intro: str
    checks: Callable[[Bench], Iterator[tuple[str, Check]]]
    minutes: float


@dataclass(frozen=True)
class Outcome:
    section: str
    check: str
    result: str  # pass, fail or skipped
    note: str = ""
    row: Row = field(default_factory=dict)
    seconds: float = 0.0


def require(holds: bool, text: str) -> None:
    """Raise Failed with a text unless a condition holds."""
    if not holds:
        raise Failed(text)


def free_memory(bench: Bench) -> None:
    """Free what earlier work left, and restart the peak; an exception may have kept a cache alive."""
    gc.collect()
    if bench.on_cuda:
        torch.cuda.empty_cache()
    restart_peak_memory(bench.device)


def skip(reason: str) -> NoReturn:
    raise Skipped(reason)


def run_section(section: Section, bench: Bench) -> Iterator[Outcome]:
    """Run a section in a process of its own, so that neither a crash nor a hang ends the others.

    A CUDA error leaves a process without a usable device.
    """
    # A process that has used CUDA must not be forked; a new one takes seconds to import everything.
    context = get_context("spawn" if bench.on_cuda else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(section, bench, sender))
    process.start()
    sender.close()
    running, problem = "start", "did not end in its time"
    try:
        while receiver.poll(max(0.0, bench.left) + GRACE):
            message = receiver.recv()
            if isinstance(message, str):
                running = message
                continue
            yield message
    except EOFError:
        process.join()
        problem = f"the process ended with exit code {process.exitcode}" if process.exitcode else ""
    finally:
        process.kill()
        with suppress(ProcessLookupError):  # what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    if problem:
        yield Outcome(section.name, running, "fail", problem)


def _work(section: Section, bench: Bench, sender: Connection) -> None:
    os.setpgrp()  # what the checks start ends with them
    logging.disable(logging.INFO)
    prepare_device(bench.device)
    for message in run_checks(section, bench):
        sender.send(message)


def run_checks(section: Section, bench: Bench) -> Iterator[str | Outcome]:
    """Run the checks of a section here; yields the name of each, then its outcome."""
    checks = section.checks(bench)
    while True:
        started = time.time()
        try:
            name, check = next(checks)
        except StopIteration:
            return
        except Exception as error:
            yield Outcome(section.name, "preparation", "fail", describe_error(error))
            return
        yield name
        result, note, row = "pass", "", Row()
        try:
            bench.needs_seconds(0)
            note = check(row) or ""
            bench.synchronize()  # errors of kernels show late
        except Skipped as reason:
            result, note = "skipped", str(reason)
        except Failed as reason:
            result, note = "fail", str(reason)
        except Exception as error:
            logging.getLogger(__name__).warning("%s: %s", section.name, name, exc_info=True)
            result, note = "fail", describe_error(error)
        yield Outcome(section.name, name, result, note, row, time.time() - started)


def describe_error(error: Exception) -> str:
    """Its class and first line."""
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line[:200]}"
