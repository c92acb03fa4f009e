"""Files that a user gives: every error in one becomes one sentence that names it."""

import errno
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from .typed import as_type

logger = logging.getLogger(__name__)

Content = TypeVar("Content")
MAX_BYTES = 2**28  # of a file that is parsed; the trace of a video of hours has fewer


class UnreadableFile(ValueError):
    """A user's file is missing, damaged or of another kind; the message names it."""


def check_is_file(path: str | Path) -> None:
    """Raise UnreadableFile unless ``path`` is a file; a reader would wait for a pipe for ever."""
    with suppress(OSError, ValueError):  # longer than a path may be
        if Path(path).is_file():
            return
    raise UnreadableFile(f"{path} does not exist or is not a file.")


@contextmanager
def reading(path: str | Path, kind: str, remedy: str = "") -> Iterator[None]:
    """Turn every exception of the block into ``PATH cannot be read as KIND: REASON; REMEDY.``

    The block reads and parses that file alone: parsers of foreign formats raise exceptions of any type.
    ``UnreadableFile`` of a nested block passes. ``kind`` has its article: ``"a video"``, ``"YAML"``.
    """
    try:
        yield
    except UnreadableFile:
        raise
    except Exception as error:
        logger.debug("reading %s", path, exc_info=True)
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, LookupError | AttributeError | TypeError):  # whose text alone says little
            reason = f"{type(error).__name__}: {reason}"
        reason = (reason.strip() or type(error).__name__).splitlines()[0].rstrip(".")
        reason = f"{reason}; {remedy}" if remedy else reason
        raise UnreadableFile(f"{path} cannot be read as {kind}: {reason}.") from error


def read_text(path: str | Path, kind: str, most: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8 of at most ``most`` bytes, with or without a byte order mark."""
    with reading(path, kind):
        if Path(path).is_fifo():  # reading waits until somebody writes
            raise ValueError("it is a pipe; save it to a file first")
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it has more than {most} bytes")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("it is not UTF-8; convert it") from error
        if "\0" in text:
            raise ValueError("it has NUL bytes; save it as UTF-8")
        return text


def parse_file(
    path: str | Path, parse: Callable[[str], Content], kind: str, remedy: str = "", most: int = MAX_BYTES
) -> Content:
    """Parse a text file; whatever ``parse`` raises becomes UnreadableFile."""
    with reading(path, kind, remedy):
        return parse(read_text(path, kind, most))


def read_json(path: str | Path, shape: type[Content] | Any, kind: str, remedy: str = "") -> Content:
    return parse_file(path, lambda text: as_type(json.loads(text), shape), kind, remedy)


def expand_path(text: str, name: str = "") -> Path:
    """Expand ``~`` in a path; raise ValueError, naming the argument, for a name that no file can have."""
    wrong = f"{name}: expected a path, got".removeprefix(": ")
    if not is_utf8(text) or "\0" in text:
        raise ValueError(f"{wrong} {text!r}, which is not UTF-8; rename the file.")
    try:
        path = Path(text).expanduser()
        path.lstat()
    except RuntimeError as error:
        raise ValueError(f"{wrong} {text}, but there is no such user; write ./{text}.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{wrong} {text}, which is too long; give a shorter name.") from error
    return path


def is_utf8(text: str) -> bool:
    """Whether text can be encoded; words of the command line and paths can hold other bytes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
