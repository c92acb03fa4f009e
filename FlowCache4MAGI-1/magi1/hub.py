"""Folders on the Hugging Face Hub that stand for local ones: ``sand-ai/MAGI-1/ckpt/vae``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowcache.hub import fetch_snapshot

_NAME = r"[A-Za-z0-9][\w.-]*"


@dataclass(frozen=True)
class HubFolder:
    """A folder inside a repository of the Hub."""

    repository: str
    folder: str

    @classmethod
    def parse(cls, name: str) -> HubFolder | None:
        """Read ``owner/repository/folder``.

        None for anything else, and for what looks like a local path: one that begins with a dot, a slash or
        ``~``, or whose first part lies in the working folder.
        """
        match = re.fullmatch(rf"({_NAME}/{_NAME})/([^/].*?)/*", name)
        if match is None or ".." in Path(name).parts or Path(Path(name).parts[0]).exists():
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.repository}/{self.folder}"

    def fetch(self, argument: str, inside: str, check: Callable[[Path], None]) -> Path:
        """Return the local folder, downloaded unless it is whole in the Hub's cache.

        Args:
            argument: that names this folder, for messages.
            inside: the only folder in it that is needed; empty: all.
            check: refuses the local folder, by a ValueError, if it lacks a file or holds a damaged one.

        Raises:
            OSError: the Hub cannot be reached, or has no such repository.
            ValueError: the repository has no such folder, or see ``check``.
        """
        wanted = f"{self.folder}/{inside}" if inside else self.folder

        def check_folder(root: Path) -> None:
            if not (root / wanted).is_dir():
                raise ValueError(
                    f"{argument} names {self}, but the repository {self.repository} has no folder {wanted}."
                )
            check(root / self.folder)

        return fetch_snapshot(argument, self.repository, [f"{wanted}/*"], check_folder) / self.folder
