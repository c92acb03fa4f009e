"""Locks by name for processes on one machine or on many.

A name is a byte far beyond the content of a file, which keeps its content. Linux frees the locks of a process
when it ends, even if it is killed, and knows those of other machines where the file system does (NFS, Lustre,
GPFS). Other systems have no such locks: there, run one process at a time.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def lock(file: BinaryIO, name: str, wait: bool = True, shared: bool = False) -> bool:
    """Lock a name until a file, open to read and write, is closed.

    Returns False if another process has the lock and ``wait`` is False. A second call makes a shared lock an
    exclusive one.

    Raises:
        OSError: the file system has no locks.
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return True
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    place = 2**40 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    request = struct.pack("hhqqi", kind, os.SEEK_SET, place, 1, 0)  # struct flock
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):  # by the file system
        return False
    except OSError as error:
        raise OSError(f"{file.name}: expected a file system with locks, got {error.strerror}.") from error
    return True


@contextmanager
def locked(path: Path, name: str, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of a file, made if need be, within the block; yields what ``lock`` returns."""
    with path.open("a+b") as file:
        yield lock(file, name, wait)
