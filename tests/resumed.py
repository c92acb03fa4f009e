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


def loaded(content: bytes) -> tuple[State, Trace]:
    """The arguments of ``saved``."""
    content, trace = torch.load(io.BytesIO(content), weights_only=True), Trace()
    trace.load_state_dict(content["trace"], content["steps"])
    return content["state"], trace


def check_stream(stream: Callable[..., Iterator], name: str) -> None:
    """Resume ``stream(trace, state)`` from a part that its name chooses: the rest must be the same."""
    trace, parts, states = Trace(), [], []
    for part in stream(trace, None):
        parts.append(part)
        states.append(saved(part.state(), trace) if part.state else None)
    offered = [place for place, state in enumerate(states) if state is not None]
    place = random.Random(name).choice(offered[:-1])
    state, other = loaded(states[place])
    rest = list(stream(other, state))
    assert len(rest) == len(parts) - place - 1
    for theirs, ours in zip(rest, parts[place + 1 :], strict=True):
        assert torch.equal(theirs.frames, ours.frames)
        assert torch.equal(theirs.latents, ours.latents)
    assert decided(other) == decided(trace)


def check_killed_often(run: Callable[..., int], folder: Path) -> None:
    """Kill ``run("--resume")`` ten times at random: the files in ``folder`` are those of ``run()``."""

    def content() -> tuple[dict[str, bytes], list]:
        files = {path.name: path for path in folder.iterdir()}
        (trace,) = (decided(Trace.load(path)) for name, path in files.items() if name.endswith(".json"))
        same = {name: path.read_bytes() if name.endswith(".mp4") else b"" for name, path in files.items()}
        return same, trace

    assert run() == 0
    whole = content()
    for path in folder.iterdir():
        path.unlink()
    chosen = random.Random(0)
    for _ in range(10):
        kill_at(chosen.randrange(60), lambda: run("--resume"))
    assert run("--resume") == 0
    assert content() == whole


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


def stop_at(moment: int, failure: tuple[type[BaseException], ...], work: Callable[[], Any]) -> Any:
    """Run in this process, and raise a failure (type and arguments) at a moment; returns the work's value."""

    def fail() -> None:
        raise failure[0](*failure[1:])

    with watched(moment, fail):
        return work()
