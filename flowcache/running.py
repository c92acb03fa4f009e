"""Runs a program: checks its input, does the work, reports; every early end becomes one sentence."""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from .command_line import one_line
from .environment import Unavailable
from .finite import NotFiniteError
from .plots.style import format_bytes, format_flops, format_saving
from .trace import Trace

Job = TypeVar("Job")


def run_checked(prepare: Callable[[], Job], run: Callable[[Job], str]) -> int:
    """Check, run and report; returns the exit code: 2 for bad input, 1 for a failure.

    An interrupted run has 128 and the signal's number. ``prepare`` raises ValueError or OSError with one
    sentence; notes of an exception become part of it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next opened file would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for name in ("httpx", "httpx2"):  # by the version of huggingface_hub
        logging.getLogger(name).setLevel(logging.WARNING)
    # Compiled with weights of torchao.
    warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")
    code = 2
    try:
        with _signals_as_interrupt():
            job = prepare()
            code = 1
            report = run(job)
    except KeyboardInterrupt as error:
        sentence = _sentence("interrupted", error)
        code = 128 + (error.args[0] if error.args else signal.SIGINT)
    except (OSError, ValueError, NotFiniteError, Unavailable) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:  # without its number
            reason = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        sentence = _sentence(reason, error)
    except (RuntimeError, MemoryError) as error:
        # PyTorch raises a class of its own on CUDA only.
        on_cuda = isinstance(error, torch.OutOfMemoryError)
        if not (on_cuda or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        reason = str(error).split(". ")[0] if on_cuda else "out of memory on the CPU"
        reason += "; fewer or smaller frames, or a compressed cache, need less memory"
        sentence, code = _sentence(reason, error), 1
    else:
        return _report(report)
    if code != 2:
        gc.collect()  # frees what the exception held: progress bars end their lines
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"error: {sentence}\n")
    return code


def _sentence(reason: str, error: BaseException) -> str:
    notes = getattr(error, "__notes__", ())
    text = "; ".join([reason.rstrip("."), *notes]) if notes else reason
    if not getattr(error, "has_lines", False):
        text = one_line(text)
    return text if text.endswith((".", "?")) else f"{text}."


def _report(text: str) -> int:
    """Write a line to standard output; returns the exit code.

    The work is done: it does not matter whether somebody reads on, or which characters a terminal has.
    """
    stream = sys.stdout
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
        return 0
    except OSError as error:
        with suppress(OSError):  # Python flushes again at its end, and must not fail then
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        sys.stderr.write(f"error: standard output: {error.strerror}.\n")
        return 1


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Within the block, SIGTERM cleans up as Ctrl-C does; a signal that the caller ignores stays ignored."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(trace: Trace, seconds: float) -> str:
    """One line: time, reuse, FLOPs, memory; before it, the expectation of a search for settings."""
    actual, vanilla = trace.flops["actual"], trace.flops["vanilla"]
    denoise, compress = trace.seconds["denoise"], trace.seconds.get("compress")
    largest = max(trace.windows, key=lambda window: window.kv_bytes)
    held, plain = format_bytes(largest.kv_bytes), format_bytes(largest.kv_plain_bytes)
    cache = f"KV cache {held}" + ("" if held == plain else f" ({plain} uncompressed)")
    if compress is not None:
        count = sum(len(step.compressions) for step in trace.steps)
        cache += f", {count} compressions in {compress / denoise:.2%} of the denoising time"
    tuning = trace.settings.get("tuning")
    expected = f"{tuning['expected']}; achieved {vanilla / actual:.2f}x\n" if tuning else ""
    return expected + (
        f"{seconds:.1f} s in all, {denoise:.1f} s denoising; "
        f"reuse ratio {trace.reuse_ratio:.2f}; {format_flops(actual)} ({format_saving(actual, vanilla)}); "
        f"{cache}; peak memory {format_bytes(trace.peak_memory_bytes)}"
    )
