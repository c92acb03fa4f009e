"""Locks that several processes share, on one machine or on many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class Locks:
    """Locks by name, each a file.

    The system gives a lock back when the process that holds it ends, however it ends; so a crash keeps
    nobody out. Processes of other machines are seen where the file system passes locks on, as NFS, Lustre
    and GPFS do.

    Args:
        folder: for the files; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Wait for the lock and hold it within the block."""
        with self._taken(name, wait=True):
            yield

    @contextmanager
    def attempt(self, name: str) -> Iterator[bool]:
        """Hold the lock within the block if nobody else does; says whether that worked."""
        with self._taken(name, wait=False) as free:
            yield free

    @contextmanager
    def _taken(self, name: str, wait: bool) -> Iterator[bool]:
        # names hold what file names cannot
        lock = FileLock(self._folder / hashlib.sha256(name.encode()).hexdigest()[:16])
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        except NotImplementedError as error:
            raise OSError(
                f"{self._folder.parent} lies on a file system without locks; choose another."
            ) from error
        try:
            yield True
        finally:
            lock.release()
