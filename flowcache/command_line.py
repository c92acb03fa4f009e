"""Flags that the programs share, and checks of what is given with them."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn

import torch

from .tuning import Target, Tuning
from .user_files import expand_path, is_utf8

logger = logging.getLogger(__name__)

#: What stands behind it are defaults of a script.
DEFAULTS = "--defaults"

RESUME_HELP = "save what is needed to go on as the video grows, and go on from it if it is there"


def one_line(text: str) -> str:
    """Escape line breaks and other control characters, which file names and prompts may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
        self.exit(2, f"error: {one_line(message.rstrip('.'))}.\n")


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
    """The target that the flags ask for; None: none. It overrides method and preset of a script.

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
            override_default(args, name, default)
    if args.method != "flowcache":
        raise ValueError(f"{target.flag} needs method flowcache, got {args.method}.")
    for name, value in {"preset": args.preset, **chosen}.items():
        if value is not None:
            raise ValueError(f"{target.flag} and {name} exclude each other: leave one of them out.")
    return target


def override_default(args: argparse.Namespace, name: str, value: Any) -> None:
    """Replace a default of a script that does not go with what the user typed, and log it."""
    if getattr(args, name) != value:
        logger.info("--%s %s of the script is overridden by what was typed", name, getattr(args, name))
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
