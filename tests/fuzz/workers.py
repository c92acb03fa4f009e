"""Runs inputs in a child process, which may hang, run out of memory or die."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from .oracle import Fault

#: Seconds of the processor and of the clock that an input may take; others may keep the processor busy.
CPU_SECONDS, CLOCK_SECONDS = 20, 60
#: Bytes that a child may ask for beyond what it has at its start.
MEMORY = 3 * 2**30

#: Tries out the input of that number; returns its kind, what shows it, and its faults.
Trial = Callable[[int], tuple[str, str, list[Fault]]]


@dataclass
class Result:
    """What came of an input."""

    number: int
    kind: str = "unknown"
    shown: str = ""
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0


class Overdue(BaseException):
    """An input took too long."""


def run_in_children(
    numbers: Sequence[int], trial: Trial, describe: Callable[[int], tuple[str, str]]
) -> Iterator[Result]:
    """Results of the inputs of these numbers; a child that dies is replaced.

    Args:
        numbers: of the inputs.
        trial: runs in the child.
        describe: kind and words of an input that did not come back.
    """
    left = list(numbers)
    while left:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_work, args=(ours, theirs, left, trial), daemon=True)
        child.start()
        theirs.close()
        while left:
            try:
                if not ours.poll(CLOCK_SECONDS + 30):
                    child.kill()
                    raise EOFError
                result = ours.recv()
            except EOFError:
                child.join()
                number = left.pop(0)
                ended = f"ended with {child.exitcode}"
                yield Result(number, *describe(number), [Fault("crash", ended, ended)])
                break
            left.pop(0)
            yield result
        else:
            child.join()


def _work(others: Connection, connection: Connection, numbers: Sequence[int], trial: Trial) -> None:
    others.close()  # so that sending fails when the parent is gone
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, _overdue)
    gc.freeze()  # the programs collect after a failure, which is slow among so many objects
    for number in numbers:
        result, started = Result(number), time.perf_counter()
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, CLOCK_SECONDS)
            result.kind, result.shown, result.faults = trial(number)
        except Exception:
            result.faults = [Fault("own", "the fuzzer broke", traceback.format_exc())]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        result.seconds = time.perf_counter() - started
        connection.send(result)
    connection.close()


def _overdue(*_: object) -> None:
    raise Overdue
