"""Repositories of the Hugging Face Hub: from its cache where that has all, else downloaded."""

import logging
from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from .weight_files import drop_other_forms

logger = logging.getLogger(__name__)


def fetch_snapshot(name: str, repository: str, patterns: Sequence[str], check: Callable[[Path], object]) -> Path:
    """Return the folder of a repository in the Hub's cache; connect only if files are missing.

    ``name`` is that of the argument, ``patterns`` select files, of which one form of the same weights is downloaded,
    and ``check`` raises ValueError for a folder with a missing or damaged file. Raises OSError where the Hub or the
    repository cannot be reached.
    """
    cached = ""
    try:
        root = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
        check(root)
        return root
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        cached = f"; in the cache, {str(error).rstrip('.')}"
    logger.info("%s: waiting for %s at %s", name, repository, constants.ENDPOINT)
    try:
        # The download itself waits for its first answer without limit.
        found = HfApi().repo_info(repository, timeout=constants.HF_HUB_ETAG_TIMEOUT).siblings or ()
        wanted = drop_other_forms(filter_repo_objects([file.rfilename for file in found], allow_patterns=patterns))
        root = Path(snapshot_download(repository, allow_patterns=[escape(path) for path in wanted]))
    except RepositoryNotFoundError as error:
        missing = f"{name}: the Hub has no repository {repository} that is open to you"
        raise OSError(f"{missing}; check the name, or give a local folder.") from error
    except Exception as error:  # of many kinds: of the network, the Hub, the disk
        raise OSError(
            f"{name}: {repository} could not be downloaded from {constants.ENDPOINT} "
            f"({type(error).__name__}){cached}; check the connection, or give a local folder."
        ) from error
    check(root)
    return root
