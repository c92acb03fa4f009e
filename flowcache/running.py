"""Runs a program: checks its input, does the work, reports; every early end becomes one sentence."""

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

import torch

from .command_line import describe_error
from .environment import Unavailable
from .finite import NotFiniteError
from .parallel.world import LOST, REPORT, World
from .plots.style import format_bytes, format_flops, format_saving, format_time
from .trace import Trace

logger = logging.getLogger(__name__)

Job = TypeVar("Job")


def run_checked(prepare: Callable[[], Job], run: Callable[[Job], str], world: World | None = None) -> int:
    """Check, run and report; returns the exit code: 2 for bad input, 1 for a failure.

    An interrupted run has 128 and the signal's number. ``prepare`` raises ValueError or OSError with one
    sentence; notes of an exception become part of it. Of several processes the first alone reports, also for others.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next opened file would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    world = world or World()
    first, index = world.rank.is_first, world.rank.index
    form = "%(levelname)s %(message)s" if first else f"%(levelname)s rank {index}: %(message)s"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format=form)
    for name in ("httpx", "httpx2"):  # by the version of huggingface_hub
        logging.getLogger(name).setLevel(logging.WARNING)
    # Compiled with weights of torchao.
    warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")
    code, is_result = 2, False
    with _signals_as_interrupt(world):
        try:
            job = prepare()
            code = 1
            report = run(job)
            world.leave()
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else signal.SIGINT
            sentence, code, is_result = describe_error(error, "interrupted"), 128 + number, world.is_many
        except (OSError, ValueError, NotFiniteError, Unavailable) as error:
            sentence = describe_error(error)
        except (RuntimeError, MemoryError) as error:
            is_result, reason = world.lost(error), explain_memory(error)
            if not is_result and reason is None:
                world.post_failure(describe_error(error))
                raise
            sentence, code = describe_error(error, reason), 1
        else:
            return _report(report) if world.rank.is_first else 0
        if world.is_many:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # launchers end all processes with the first that ends
        if code != 2:
            gc.collect()  # frees what the exception held: progress bars end their lines
        if is_result:
            sentence = world.failure() or f"{LOST}, or the launcher was told to end."
            code = 1
        elif not world.agreed and not world.rank.is_first:
            world.post_failure(sentence)
            return code
        world.report(lambda: _write_error(sentence))
        return code


def _write_error(sentence: str) -> None:
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"error: {sentence}\n")
        sys.stderr.flush()


def explain_memory(error: BaseException) -> str | None:
    """Reason of exhausted memory, for which PyTorch has a class of its own on CUDA only; None: another error."""
    on_cuda = isinstance(error, torch.OutOfMemoryError)
    if not (on_cuda or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
        return None
    reason = str(error).split(". ")[0] if on_cuda else "out of memory on the CPU"
    return f"{reason}; fewer or smaller frames, or a compressed cache, need less memory"


def describe_failure(error: Exception) -> str:
    """One sentence on why a run failed, for users of a server; a bug's traceback goes to the log alone."""
    reason = explain_memory(error)
    if reason is None and not isinstance(error, OSError | ValueError | NotFiniteError | Unavailable):
        logger.error("the run failed", exc_info=error)
    return describe_error(error, reason)


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
def _signals_as_interrupt(world: World) -> Iterator[None]:
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
        with _escape(world) if world.is_many else nullcontext():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _escape(world: World) -> Iterator[None]:
    """End this process some time after a signal even if a collective without end keeps Python from handling it."""
    (reading, writing), done = os.pipe(), threading.Event()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        if os.read(reading, 1) and not done.wait(REPORT.total_seconds()):
            world.report(lambda: _write_error(world.failure() or f"{LOST}."))
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        os.close(writing)


def summary(trace: Trace, seconds: float, vanilla: Trace | None = None) -> str:
    """What was saved against vanilla: lines for compute, memory and time, before them the result of a search.

    ``seconds`` are those of the whole program; ``vanilla`` is the trace of the same video without the method.
    """
    actual, plain = trace.flops["actual"], trace.flops["vanilla"]
    compute = f"{format_flops(actual)}, {format_saving(actual, plain)}; reuse ratio {trace.reuse_ratio:.2f}"
    if trace.reuse_ratio:
        compute += ", the share of the chunks' steps that skipped the model"
    held, uncompressed = _largest_cache(trace)
    memory = f"keys and values {format_bytes(held)}"
    if uncompressed > held:
        memory += f", {uncompressed / held:.1f}x less than the {format_bytes(uncompressed)} uncompressed"
    spent = [f"{format_time(seconds)} in all"]
    for name, stage in (("text", "text"), ("denoising", "denoise"), ("decoding", "decode")):
        spent += [f"{name} {format_time(trace.seconds[stage])}"] if stage in trace.seconds else []
    if "compress" in trace.seconds:
        spent.append(f"compression {trace.seconds['compress'] / trace.seconds['denoise']:.0%} of denoising")
    runs_whole_window = (trace.settings.get("reuse") or {}).get("whole_window")
    if trace.flops["live_only"] < plain and not runs_whole_window:
        memory += "; vanilla, which runs the whole window, keeps none"
    elif vanilla is not None:
        memory += f" ({format_bytes(_largest_cache(vanilla)[0])} in vanilla)"
    if vanilla is not None and vanilla.environment == trace.environment:
        saved = vanilla.denoising_seconds / trace.denoising_seconds
        kind = "processor time" if trace.environment.get("device") == "cpu" else "time"
        spent.append(f"{saved:.2f}x less {kind} of denoising than vanilla on this machine")
    memory += f"; peak memory {format_bytes(trace.peak_memory_bytes)}"
    lines = [f"compute: {compute}", f"memory: {memory}", f"time: {', '.join(spent)}"]
    if tuning := trace.settings.get("tuning"):
        lines.insert(0, f"search: {tuning['expected']}; achieved {plain / actual:.2f}x")
    return "\n".join(lines)


def _largest_cache(trace: Trace) -> tuple[int, int]:
    """Bytes of the largest window's keys and values, and without compression and storage in fewer bits."""
    return max((window.kv_bytes + window.kv_host_bytes, window.kv_plain_bytes) for window in trace.windows)
