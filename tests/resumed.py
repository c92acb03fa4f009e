"""Runs that stop and go on, for their tests."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from flowcache import Trace, files, resume
from flowcache.denoise import WindowRun
from flowcache.environment import repository_commit
from flowcache.files import GrowingFile
from flowcache.state import State, on_host


def saved(state: State, trace: Trace) -> bytes:
    """A state and a trace as a file would hold them."""
    file = io.BytesIO()
    torch.save(on_host({"state": state, "trace": trace.state_dict(), "steps": trace.step_lines()}), file)
    return file.getvalue()


def loaded(content: bytes) -> tuple[State, Trace]:
    """What ``saved`` was given."""
    content, trace = torch.load(io.BytesIO(content), weights_only=True), Trace()
    trace.load_state_dict(content["trace"], content["steps"])
    return content["state"], trace


def decided(trace: Trace) -> list[dict[str, Any]]:
    """All of a trace's steps but the time that they took; and totals and windows."""
    steps = [{name: of for name, of in vars(step).items() if name != "seconds"} for step in trace.steps]
    return [*steps, trace.flops, *map(vars, trace.windows)]


class Moments:
    """Moments at which a run may be killed: each step of the loop and, of all that it saves, before each
    write, in its middle, and after it.

    Args:
        reached: called at each.
    """

    def __init__(self, reached: Callable[[], None]) -> None:
        self._reached = reached

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, the moments are reached."""
        plain_append, plain_save = GrowingFile.append, torch.save

        def append(file: GrowingFile, content: bytes) -> None:
            self._in_halves(partial(plain_append, file), content)

        def save(state: State, file: BinaryIO) -> None:
            whole = io.BytesIO()
            plain_save(state, whole)
            self._in_halves(file.write, whole.getvalue())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(WindowRun, "_record_step", self._around(WindowRun._record_step))
            patch.setattr(GrowingFile, "append", append)
            patch.setattr(resume.torch, "save", save)
            patch.setattr(files.os, "replace", self._around(os.replace))
            patch.setattr(Path, "unlink", self._around(Path.unlink))
            yield

    def _around(self, plain: Callable) -> Callable:
        def watched(*arguments, **named):
            self._reached()
            value = plain(*arguments, **named)
            self._reached()
            return value

        return watched

    def _in_halves(self, write: Callable[[bytes], Any], content: bytes) -> None:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            self._reached()
            write(half)
        self._reached()


def count_moments(work: Callable[[], Any]) -> int:
    """Run to the end; how many moments there are."""
    reached = []
    with Moments(lambda: reached.append(1)).watched():
        work()
    return len(reached)


def kill_at(moment: int, work: Callable[[], Any]) -> bool:
    """Run in a process of its own, which SIGKILL ends at that moment; whether it was not done by then."""
    repository_commit()  # asked for once, and not by every child
    child = os.fork()
    if child == 0:
        left = iter(range(moment))
        try:
            with Moments(lambda: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)).watched():
                work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed instead"
    return os.WIFSIGNALED(status)


def stop_at(moment: int, failure: tuple[type[BaseException], ...], work: Callable[[], Any]) -> Any:
    """Run in this process; what the work returns.

    Args:
        moment: at which a failure is raised.
        failure: its type and arguments.
        work: to run.
    """
    reached = count()

    def fail() -> None:
        if next(reached) == moment:
            raise failure[0](*failure[1:])

    with Moments(fail).watched():
        return work()
