"""Folders on the Hugging Face Hub in place of local ones: ``sand-ai/MAGI-1/ckpt/vae``."""

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
        """Read ``owner/repository/folder``; None for anything else and for local paths.

        A path is local if it begins with a dot, a slash or ``~``, or if its first part exists here.
        """
        match = re.fullmatch(rf"({_NAME}/{_NAME})/([^/].*?)/*", name)
        if match is None or ".." in Path(name).parts or Path(Path(name).parts[0]).exists():
            return None
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.repository}/{self.folder}"

    def fetch(self, argument: str, inside: str, check: Callable[[Path], None]) -> Path:
        """Return the local folder, downloaded unless the Hub's cache has all of it.

        Args:
            argument: that names this folder, for messages.
            inside: the only folder in it to download; empty: all.
            check: refuses the local folder, by a ValueError, if a file is missing or damaged.

        Raises:
            OSError: the Hub cannot be reached, or has no such repository.
            ValueError: the repository has no such folder, or see ``check``.
        """
        wanted = f"{self.folder}/{inside}".rstrip("/")

        def check_folder(root: Path) -> None:
            if not (root / wanted).is_dir():
                raise ValueError(
                    f"{argument} names {self}, but the repository {self.repository} has no folder {wanted}."
                )
            check(root / self.folder)

        return fetch_snapshot(argument, self.repository, [f"{wanted}/*"], check_folder) / self.folder
