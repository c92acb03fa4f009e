"""Runs that stop and continue, for their tests."""

import io
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from flowcache import Trace, files, resume
from flowcache.denoise import WindowRun
from flowcache.environment import repository_commit
from flowcache.files import GrowingFile
from flowcache.state import State, on_host


def saved(state: State, trace: Trace) -> bytes:
    """A state and a trace as a file holds them."""
    file = io.BytesIO()
    torch.save(on_host({"state": state, "trace": trace.state_dict(), "steps": trace.step_lines()}), file)
    return file.getvalue()


def check_stream(stream: Callable[..., Iterator], name: str) -> None:
    """Resume ``stream(trace, state)`` from a part that its name chooses: the rest must be the same."""
    trace, parts, states = Trace(), [], {}
    for place, part in enumerate(stream(trace, None)):
        parts.append(part)
        if part.state:
            states[place] = saved(part.state(), trace)
    place = random.Random(name).choice([*states][:-1])
    saving, other = torch.load(io.BytesIO(states[place]), weights_only=True), Trace()
    other.load_state_dict(saving["trace"], saving["steps"])
    for theirs, ours in zip(stream(other, saving["state"]), parts[place + 1 :], strict=True):
        assert torch.equal(theirs.frames, ours.frames)
        assert torch.equal(theirs.latents, ours.latents)
    assert decided(other) == decided(trace)


def decided(trace: Trace) -> list[dict[str, Any]]:
    """Steps of a trace without their times; totals; windows."""
    steps = [{name: of for name, of in vars(step).items() if name != "seconds"} for step in trace.steps]
    return [*steps, trace.flops, *map(vars, trace.windows)]


@contextmanager
def watched(moment: int, strike: Callable[[], Any]) -> Iterator[Iterator[int]]:
    """Within, call ``strike`` at one of the moments at which a run may be killed; yields their counter.

    The moments are each step of the loop, and before, in the middle of and after each write.
    """
    plain_append, plain_save, moments = GrowingFile.append, torch.save, count()

    def reach() -> None:
        if next(moments) == moment:
            strike()

    def around(plain: Callable) -> Callable:
        def wrapped(*arguments, **named):
            reach()
            value = plain(*arguments, **named)
            reach()
            return value

        return wrapped

    def in_halves(write: Callable[[bytes], Any], content: bytes) -> None:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            reach()
            write(half)
        reach()

    def save(state, file) -> None:
        whole = io.BytesIO()
        plain_save(state, whole)
        in_halves(file.write, whole.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowRun, "_record_step", around(WindowRun._record_step))
        patch.setattr(GrowingFile, "append", lambda f, text: in_halves(partial(plain_append, f), text))
        patch.setattr(resume.torch, "save", save)
        patch.setattr(files.os, "replace", around(os.replace))
        patch.setattr(Path, "unlink", around(Path.unlink))
        yield moments


def kill_at(moment: int, work: Callable[[], Any]) -> bool:
    """Run in a child process that SIGKILL ends at that moment; False if it was done before."""
    repository_commit()  # cached for the children
    child = os.fork()
    if child == 0:
        try:
            with watched(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed instead"
    return os.WIFSIGNALED(status)
