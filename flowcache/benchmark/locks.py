"""Locks by name for processes on one machine or on many."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4


class Locks:
    """Locks for the processes at work in a folder; a context manager, within which locks are taken.

    The system releases the locks of a process when it ends, even if it is killed. Processes on other machines
    are seen if the file system supports locks across machines, as NFS, Lustre and GPFS do.

    Args:
        folder: for the lock files; the last process to leave removes it.
        door: a file that stays. A process locks it to enter and to leave, so that no process enters while
            the last one removes the lock files.
        scratch: another folder that the last process removes.
    """

    def __init__(self, folder: Path, door: Path, scratch: Path) -> None:
        self._folder, self._door, self._scratch = folder, door, scratch
        self._presence = ExitStack()

    def __enter__(self) -> Locks:
        with locked(self._door):
            self._folder.mkdir(exist_ok=True)
            self._presence.enter_context(locked(self._folder / f"process-{uuid4().hex}"))
        return self

    def __exit__(self, *_: object) -> None:
        with locked(self._door):
            self._presence.close()
            for path in self._folder.glob("process-*"):
                with locked(path, wait=False) as free:
                    if not free:
                        return
            for folder in (self._scratch, self._folder):
                shutil.rmtree(folder, ignore_errors=True)

    def hold(self, name: str, wait: bool = True) -> AbstractContextManager[bool]:
        """Hold the lock within the block; yields False if another process has it and ``wait`` is False."""
        # a lock's name may hold characters that a file name cannot
        return locked(self._folder / hashlib.sha256(name.encode()).hexdigest()[:16], wait)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file, made if need be, within the block; yields False if another process has the lock.

    By ``fcntl``, as the file may be a manifest: older versions of filelock empty the file that they lock.

    Raises:
        OSError: the file system has no locks.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # by the file system
            free = False
        except OSError as error:
            reason = f"{path.parent}: expected a file system with locks, got {error.strerror}."
            raise OSError(reason) from error
        else:
            free = True
        yield free
