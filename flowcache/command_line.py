"""What the programs share: how they refuse, report and end."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from .extras import Unavailable
from .plots import reuse_map
from .trace import Trace

Job = TypeVar("Job")

RESUME_HELP = "save what is needed to go on as the video grows, and go on from it if it is there"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the list of all flags; takes no abbreviations."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.rstrip('.')}.\n")


def run_program(prepare: Callable[[], Job], run: Callable[[Job], tuple[Trace, Path]]) -> int:
    """Check, make a video and report; returns the exit code: 2 for bad input, 1 for a failure.

    Args:
        prepare: checks the input before any weight is read; raises ValueError or OSError with one sentence.
        run: makes the video; returns the trace and the video's path.
    """
    started = time.perf_counter()

    def report(job: Job) -> str:
        trace, video = run(job)
        files = save_trace(trace, video)
        return f"video: {video}\n{files}\n{summary(trace, time.perf_counter() - started)}"

    return run_checked(prepare, report)


def run_checked(prepare: Callable[[], Job], run: Callable[[Job], str]) -> int:
    """Check, run and say what came of it; returns the exit code: 2 for bad input, 1 for a failure.

    Args:
        prepare: checks the input; raises ValueError or OSError with one sentence.
        run: does the work; returns what to say.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for name in ("httpx", "httpx2"):  # by the version of huggingface_hub
        logging.getLogger(name).setLevel(logging.WARNING)
    code = 2
    try:
        job = prepare()
        code = 1
        report = run(job)
    except (OSError, ValueError, Unavailable) as error:
        sys.stderr.write(f"error: {error}\n")
        return code
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        sys.stderr.write(
            f"error: {reason}; fewer or smaller frames, or a compressed cache, need less memory.\n"
        )
        return code
    sys.stdout.write(f"{report}\n")
    return 0


def save_trace(trace: Trace, video: Path) -> str:
    """Write trace and reuse map beside a video; says where they lie."""
    files = {"trace": video.with_suffix(".trace.json"), "reuse map": video.with_suffix(".reuse.png")}
    trace.save(files["trace"])
    reuse_map(trace, files["reuse map"])
    return "\n".join(f"{name}: {path}" for name, path in files.items())


def summary(trace: Trace, seconds: float) -> str:
    """One line: time, reuse, FLOPs, memory."""
    actual, vanilla = trace.flops["actual"], trace.flops["vanilla"]
    return (
        f"{seconds:.1f} s in all, {trace.seconds['denoise']:.1f} s denoising; "
        f"reuse ratio {trace.reuse_ratio:.2f}; {actual / 1e15:.6f} PFLOPs "
        f"({vanilla / actual:.2f}x fewer than vanilla); peak memory {trace.peak_memory_bytes / 2**30:.2f} GiB"
    )


def check_device(name: str) -> torch.device:
    """The device of that name, ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ValueError: there is no such device; one sentence that names the argument ``device``.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cpu or cuda, got {name!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda asks for a CUDA device, but PyTorch finds none; use cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name} is not there: PyTorch finds {torch.cuda.device_count()}; use cuda.")
    return device


def output_file(name: str, path: Path) -> Path:
    """The path, if a file can be written there; its folder is made if need be.

    Raises:
        ValueError: it names a folder or lies where nothing can be written; the argument ``name`` is named.
    """
    if path.is_dir():
        raise ValueError(f"{name} must name a file to write, but {path} is a folder.")
    writable_folder(name, path.parent)
    return path


def writable_folder(name: str, folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        ValueError: it cannot be made or written to; the argument ``name`` is named.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".flowcache").touch()
        (folder / ".flowcache").unlink()
    except OSError as error:
        raise ValueError(f"{name} {folder} cannot be written to: {error.strerror}.") from error
    return folder


def words_of(prompt: str) -> str:
    """A prompt as part of a file's name: letters and digits, at most 60 of them and 120 bytes."""
    words = "".join(c if c.isalnum() else " " for c in prompt).split()
    name = "_".join(words)[:60].strip("_")
    return name.encode()[:120].decode(errors="ignore") or "video"
