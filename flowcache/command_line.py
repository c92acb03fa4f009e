"""What every command line shares: a parser with short errors, and checks of devices and outputs."""

import argparse
import difflib
import errno
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn

import torch

from .user_files import expand_path, is_utf8

#: Addresses that only this machine reaches.
LOCAL_HOSTS = ("127.0.0.1", "localhost")


def one_line(text: str) -> str:
    """Escape line breaks and other control characters, which file names and prompts may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def describe_error(error: BaseException, reason: str | None = None) -> str:
    """One sentence with the reason, by default the error's own, and the error's notes."""
    if reason is None:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:  # without its number
            reason = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    notes = getattr(error, "__notes__", ())
    text = "; ".join([reason.rstrip("."), *notes]) if notes else reason
    if not getattr(error, "has_lines", False):
        text = one_line(text)
    return text if text.endswith((".", "?")) else f"{text}."


class Parser(argparse.ArgumentParser):
    """Reports errors in one sentence, without the list of all flags; takes no abbreviations.

    Arguments must be UTF-8. Flags of type ``Path`` expand ``~``.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=form, allow_abbrev=False, **options)
        self.register("type", Path, _path)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        words = list(sys.argv[1:] if args is None else args)
        for word in words:
            if not is_utf8(word):  # which no file or tokenizer could take
                self.error(f"arguments: expected UTF-8, got {word!r}; rename the file or set a UTF-8 locale")
        parsed, rest = self.parse_known_args(words, namespace)
        if rest:
            close = difflib.get_close_matches(rest[0][:100], self._option_string_actions, 1, 0.7)
            hint = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(rest)[:200]}{hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message.rstrip('.'))}{'' if message.endswith('?') else '.'}\n")


def _path(text: str) -> Path:
    """Read a path for argparse, which shows the message of no other exception."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check_device(name: str) -> torch.device:
    """The device of that name, ``cpu``, ``cuda`` or ``cuda:1``; raises ValueError if it is missing."""
    if not re.fullmatch(r"(cpu|cuda)(:\d{1,3})?", name):
        raise ValueError(f"device: expected cpu, cuda or cuda:1, got {name!r}.")
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device: expected one of {count} CUDA devices that PyTorch finds, got {name}; use cpu.")
    return device


def check_address(host: str, port: int) -> None:
    """Raise ValueError where a server cannot listen, as another does or the host is not of this machine."""
    try:
        place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(place[4], family=place[0]):
            pass
    except OSError as error:
        raise ValueError(
            f"host, port: {host}:{port} cannot be listened at: {error.strerror}; choose others."
        ) from error


def output_file(name: str, path: Path) -> Path:
    """Return the path if a file can be written there, or raise ValueError with the option's name.

    The folder is made; there must be room in the name for the files that are written beside the file.
    """
    if os.path.isdir(path):
        raise ValueError(f"{name} must name a file to write, but {path} is a folder.")
    writable_folder(name, path.parent, path.stem)
    return path


def output_stem(name: str, path: Path) -> Path:
    """Return the path without suffix of several files, checked as by ``output_file``."""
    if path.name in ("", ".."):
        raise ValueError(f"{name}: expected a file name without suffix, got {path}; name a file.")
    output_file(name, Path(f"{path}.json"))
    return path


def writable_folder(name: str, folder: Path, stem: str = "") -> Path:
    """Return the folder, made if need be, or raise ValueError with the option's name.

    ``stem`` is that of the files to write, which suffixes and temporary names make longer.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permissions alone do not show it. No written name is longer than ``.STEM.trace.XXXXXXXX.json``.
        with NamedTemporaryFile(dir=folder, prefix=f".{stem}.", suffix=".check.temp"):
            return folder
    except (OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "too many folders"
        place = folder / stem if getattr(error, "errno", None) == errno.ENAMETOOLONG else folder
        raise ValueError(f"{name} {place} cannot be written to: {reason}.") from error
