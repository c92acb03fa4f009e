"""Files that a user gives: whatever is wrong with one becomes one sentence that names it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class UnreadableFile(ValueError):
    """A user's file is missing, damaged or of another kind; the message names it."""


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn every exception of the block into a sentence that names the file.

    The block holds the reading and parsing of that file and nothing else: parsers of foreign formats raise
    whatever they like, and a traceback of theirs helps no user. The original is logged at debug level.

    Args:
        path: of the file, as the user gave it.
        kind: what the file should be, with its article: ``"a video"``, ``"YAML"``.

    Raises:
        UnreadableFile: ``PATH cannot be read as KIND: REASON.``; one of a nested block passes unchanged.
    """
    try:
        yield
    except UnreadableFile:
        raise
    except Exception as error:
        logger.debug("reading %s", path, exc_info=True)
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = (told.strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UnreadableFile(f"{path} cannot be read as {kind}: {reason}.") from error


def expand_path(text: str, name: str = "") -> Path:
    """A path as a user gave it, with ``~`` expanded.

    Args:
        text: what was given.
        name: of the argument; empty: the caller names it.

    Raises:
        ValueError: no file can have that name, or ``~user`` names no user.
    """
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
    """Whether text can be written as UTF-8; words of the command line and paths can be other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
