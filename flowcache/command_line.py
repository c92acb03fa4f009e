"""What the programs share: how they refuse, report and end."""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from .benchmark.ranks import Rank
from .extras import Unavailable
from .finite import NotFiniteError
from .plots import reuse_map
from .trace import Trace
from .tuning import Target, Tuning
from .user_files import expand_path, is_utf8

Job = TypeVar("Job")

logger = logging.getLogger(__name__)

#: What stands behind it are defaults of a script.
DEFAULTS = "--defaults"

RESUME_HELP = "save what is needed to go on as the video grows, and go on from it if it is there"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the list of all flags; takes no abbreviations.

    A script appends its own settings to the words of its user: ``"$@" --defaults --method flowcache``. What
    stands before ``--defaults`` overrides what stands behind it. ``typed`` of the parsed arguments holds the
    names of the flags and keys that the user wrote.

    Arguments must be UTF-8. Flags of type ``Path`` expand ``~``.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )
        self.register("type", Path, _path)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the words of the scripts, the innermost first, and then those of the user over them."""
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if not is_utf8(word):  # which no file or tokenizer could take
                self.error(f"arguments: expected UTF-8, got {word!r}; rename the file or set a UTF-8 locale")
        end = words.index(DEFAULTS) if DEFAULTS in words else len(words)
        parsed, rest = super().parse_known_args(_defaults_first(words), namespace)
        typed = [word.removeprefix("--") for word in words[:end] if word.startswith("--")]
        parsed.typed = frozenset(word.partition("=")[0] for word in typed)
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.rstrip('.')}.\n")


def _path(text: str) -> Path:
    """A path for argparse, which shows the message of no other exception."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Refuse(argparse.Action):
    """A flag of the original programs that is refused; ``const`` says why and what to do instead."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, help=f"refused: {options['const']}", **options)

    def __call__(self, parser: argparse.ArgumentParser, *found: Any) -> NoReturn:
        """Refuse the flag as it was typed, the last of what was found."""
        parser.error(f"{found[-1]}: {self.const}")


def _defaults_first(words: list[str]) -> list[str]:
    """The words with those behind each ``--defaults`` in front of those before it, so that the latter win."""
    if DEFAULTS not in words:
        return words
    at = words.index(DEFAULTS)
    return [*_defaults_first(words[at + 1 :]), *words[:at]]


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that have the setting searched for instead of named."""
    add = parser.add_argument
    add("--target_speedup", type=float, help="times fewer FLOPs than vanilla; finds the closest setting")
    add("--target_psnr", type=float, help="dB to the same video without reuse; finds the fastest setting")
    add("--profile", type=Path, help="file of what the search found (default: in ~/.cache/flowcache)")


def target_of(args: argparse.Namespace, chosen: Mapping[str, Any]) -> Target | None:
    """The target that the flags ask for; None: none. A script's method and preset give way to it.

    Args:
        args: with those of ``add_target_flags``, ``method`` and ``preset``.
        chosen: options that select a reuse policy, by flag or key; None where that was left open.

    Raises:
        ValueError: a target is given with what it would choose, or a profile without one.
    """
    if args.target_speedup is None and args.target_psnr is None:
        if args.profile is not None:
            raise ValueError("profile needs target_speedup or target_psnr.")
        return None
    target = Target(speedup=args.target_speedup, psnr=args.target_psnr)
    for name, default in (("method", "flowcache"), ("preset", None)):
        if name not in args.typed:
            give_way(args, name, default)
    if args.method != "flowcache":
        raise ValueError(f"{target.flag} needs method flowcache, got {args.method}.")
    for name, value in {"preset": args.preset, **chosen}.items():
        if value is not None:
            raise ValueError(f"{target.flag} and {name} exclude each other: leave one of them out.")
    return target


def give_way(args: argparse.Namespace, name: str, value: Any) -> None:
    """Replace a default of a script that does not go with what the user typed, and log it."""
    if getattr(args, name) != value:
        logger.info("--%s %s of the script gives way to what was typed", name, getattr(args, name))
        setattr(args, name, value)


def settle_seed(seed: Any, resumes: bool) -> Any:
    """The seed; -1, as in the original programs, draws one and logs it.

    Raises:
        ValueError: a run that is to be resumed would draw another seed.
    """
    if seed != -1:
        return seed
    if resumes:
        raise ValueError("seed: expected a number to resume with, got -1, which draws one at each start.")
    seed = secrets.randbelow(2**32)
    logger.info("seed: %d was drawn; give it to make the same video again", seed)
    return seed


def check_tuning(tuning: Tuning) -> None:
    """Refuse a search whose profile cannot be written, or does not serve its target.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    if not os.path.exists(tuning.path):
        output_file("profile", tuning.path)
    tuning.check()


class TunableSampler(Protocol):
    """A model and settings as the programs for one video have them."""

    def load(self) -> None: ...

    def tune(self, tuning: Tuning, trace: Trace) -> None: ...


def load_and_tune(sampler: TunableSampler, tuning: Tuning | None, trace: Trace) -> None:
    """Read the weights and, if a target asks for it, find the setting; the trace gets the time of both."""
    with trace.timer("load"):
        sampler.load()
    if tuning is not None:
        with trace.timer("tune"):
            sampler.tune(tuning, trace)


def run_program(prepare: Callable[[], Job], run: Callable[[Job], tuple[Trace, Path]]) -> int:
    """Check, make a video and report; returns the exit code: 2 for bad input, 1 for a failure.

    Args:
        prepare: checks the input before any weight is read; raises ValueError or OSError with one sentence.
        run: makes the video; returns the trace and the video's path.
    """
    started = time.perf_counter()

    def prepare_alone() -> Job:
        count = Rank.from_environment(os.environ).count
        if count > 1:
            raise ValueError(
                f"WORLD_SIZE: expected 1, as one process makes one video, got {count}; start this program "
                "without torchrun, or make many videos on many GPUs with sample_video.py."
            )
        return prepare()

    def report(job: Job) -> str:
        trace, video = run(job)
        try:
            files = save_trace(trace, video)
        except OSError as error:
            error.add_note(f"the video itself is whole: {video}")
            raise
        return f"video: {video}\n{files}\n{summary(trace, time.perf_counter() - started)}"

    return run_checked(prepare_alone, report)


def run_checked(prepare: Callable[[], Job], run: Callable[[Job], str]) -> int:
    """Check, run and report; returns the exit code: 2 for bad input, 1 for a failure, else the shell's.

    An interrupted run has 128 and the signal's number. Notes of an exception end up in its sentence.

    Args:
        prepare: checks the input; raises ValueError or OSError with one sentence.
        run: does the work; returns what to report.
    """
    _open_standard_streams()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for name in ("httpx", "httpx2"):  # by the version of huggingface_hub
        logging.getLogger(name).setLevel(logging.WARNING)
    code = 2
    try:
        with _sigterm_as_interrupt():
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
    gc.collect()  # what the exception held: progress bars end their lines
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"error: {sentence}\n")
    return code


def _sentence(reason: str, error: BaseException) -> str:
    """What happened, and what the notes of the exception add."""
    notes = getattr(error, "__notes__", ())
    text = "; ".join([reason.rstrip("."), *notes]) if notes else reason
    return text if text.endswith((".", "?")) else f"{text}."


def _report(text: str) -> int:
    """Write a line to standard output; returns the exit code.

    The work is done: it neither counts who reads of it nor which characters a terminal has.
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


def _open_standard_streams() -> None:
    """Open streams that are closed, so that no file that is opened later gets their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Within the block, SIGTERM cleans up as Ctrl-C does."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def save_trace(trace: Trace, video: Path) -> str:
    """Write trace and reuse map beside a video; says where they lie."""
    files = {"trace": video.with_suffix(".trace.json"), "reuse map": video.with_suffix(".reuse.png")}
    trace.save(files["trace"])
    reuse_map(trace, files["reuse map"])
    return "\n".join(f"{name}: {path}" for name, path in files.items())


def summary(trace: Trace, seconds: float) -> str:
    """One line: time, reuse, FLOPs, memory; before it, what a search for settings had promised."""
    actual, vanilla = trace.flops["actual"], trace.flops["vanilla"]
    denoise, compress = trace.seconds["denoise"], trace.seconds.get("compress")
    share = "" if compress is None else f", {compress / denoise:.2%} of that compressing the cache"
    tuning = trace.settings.get("tuning")
    expected = f"{tuning['expected']}; {vanilla / actual:.2f}x fewer came\n" if tuning else ""
    return expected + (
        f"{seconds:.1f} s in all, {denoise:.1f} s denoising{share}; "
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
    """The path, if a file and what is written beside it can be written there; makes its folder.

    Raises:
        ValueError: it names a folder, or cannot be written; the argument ``name`` is named.
    """
    if os.path.isdir(path):
        raise ValueError(f"{name} must name a file to write, but {path} is a folder.")
    writable_folder(name, path.parent, path.stem)
    return path


def writable_folder(name: str, folder: Path, stem: str = "") -> Path:
    """The folder, made if need be.

    Args:
        name: of the argument.
        folder: to write to.
        stem: of the files to write, which suffixes and temporary names make longer.

    Raises:
        ValueError: it cannot be made, or not be written to; the argument ``name`` is named.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Only writing tells; no name that is written is longer than ``.STEM.trace.XXXXXXXX.json``.
        with NamedTemporaryFile(dir=folder, prefix=f".{stem}.", suffix=".check.temp"):
            return folder
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "too many folders"
        place = folder / stem if getattr(error, "errno", None) == errno.ENAMETOOLONG else folder
        raise ValueError(f"{name} {place} cannot be written to: {reason}.") from error


def words_of(prompt: str) -> str:
    """A prompt as part of a file's name: letters and digits, at most 60 of them and 120 bytes."""
    words = "".join(c if c.isalnum() else " " for c in prompt).split()
    name = "_".join(words)[:60].strip("_")
    return name.encode()[:120].decode(errors="ignore") or "video"
