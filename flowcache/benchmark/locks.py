"""Locks that several processes share, on one machine or on many."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locks:
    """Locks by name, each a byte of one file.

    The system gives a lock back when the process that holds it ends, however it ends; so nothing is left to
    clean up after a crash. Processes of other machines are seen where the file system passes POSIX locks on,
    as NFS, Lustre and GPFS do. Within one process a lock does not keep anyone out.

    Args:
        path: the file; made if need be, and always empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for the lock and hold it within the block."""
        place = _place(name)
        self._lock(fcntl.LOCK_EX, place)
        try:
            yield
        finally:
            self._lock(fcntl.LOCK_UN, place)

    @contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """Hold the lock within the block if nobody else does; says whether that worked."""
        place = _place(name)
        try:
            self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, place)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            self._lock(fcntl.LOCK_UN, place)

    def _lock(self, operation: int, place: int) -> None:
        try:
            fcntl.lockf(self._file, operation, 1, place)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows either where someone else holds it
            raise BlockingIOError(str(error)) from error
        except OSError as error:
            raise OSError(
                f"{self._path.parent} lies on a file system without locks ({error.strerror}); choose another."
            ) from error


def _place(name: str) -> int:
    """The byte of a name; that two of a benchmark's names share one is as good as impossible."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
