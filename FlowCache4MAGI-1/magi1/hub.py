"""Folders on the Hugging Face Hub that stand for local ones: ``sand-ai/MAGI-1/ckpt/vae``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

#: Downloads what matches ``allow_patterns`` of a repository, or finds it in the Hub's cache (``HF_HOME``);
#: returns the local folder that stands for the repository.
Download = Callable[..., str]

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

    def fetch(self, argument: str, inside: str = "", download: Download = snapshot_download) -> Path:
        """Download the folder, or only a folder inside it.

        Args:
            argument: that names this folder, for messages.
            inside: the only folder in it that is needed; empty: all.
            download: fetches it.

        Returns:
            Where the folder lies now.

        Raises:
            OSError: the Hub cannot be reached, or has no such repository.
            ValueError: the repository has no such folder.
        """
        wanted = f"{self.folder}/{inside}" if inside else self.folder
        try:
            root = Path(download(self.repository, allow_patterns=[f"{wanted}/*"]))
        except RepositoryNotFoundError as error:
            raise OSError(
                f"{argument} names {self}, but the Hub has no repository {self.repository} that is open to "
                "you; check the name, or give a local folder."
            ) from error
        except Exception as error:  # of many kinds: the network's, the Hub's, the disk's
            raise OSError(
                f"{argument} names {self}, which could not be downloaded ({type(error).__name__}); "
                "check the connection, or give a local folder."
            ) from error
        if not (root / wanted).is_dir():
            raise ValueError(
                f"{argument} names {self}, but the repository {self.repository} has no folder {wanted}."
            )
        return root / self.folder
