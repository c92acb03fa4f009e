"""Files that a user gives: whatever is wrong with one becomes one sentence that names it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class UnreadableFile(ValueError):
    """A user's file is missing, damaged or of another kind; the message names it."""


def check_is_file(path: str | Path) -> None:
    """Refuse what is no file before a reader of foreign formats opens it: it may wait for a pipe for ever.

    Raises:
        UnreadableFile: it is missing, a folder, a pipe, or longer than a path may be.
    """
    try:
        exists = Path(path).is_file()
    except (OSError, ValueError):
        exists = False
    if not exists:
        raise UnreadableFile(f"{path} does not exist or is not a file.")


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
        told = getattr(error, "strerror", None) or str(error)
        reason = (told.strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UnreadableFile(f"{path} cannot be read as {kind}: {reason}.") from error


def read_text(path: str | Path, kind: str) -> str:
    """A user's text file in UTF-8, with or without a byte order mark.

    Raises:
        UnreadableFile: it is missing, in another encoding, or no text.
    """
    with reading(path, kind):
        content = Path(path).read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("it is not UTF-8; convert it") from error
        if "\0" in text:
            raise ValueError("it has NUL bytes; save it as UTF-8")
        return text
