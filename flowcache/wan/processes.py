"""Options of models that share Wan's transformer for one video on several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..options import Given
from ..registry import described


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Options of one video on several processes."""

    use_usp: bool = described("one video over all processes that torchrun started", False)
    usp_size: int | None = described("processes that share a video with use_usp (default: all)", limits=(2, 1024))
    cfg_size: Literal["auto", "1", "2"] = described(
        "parts of guidance over processes; auto: 2 for an even number of processes with guidance", "auto"
    )


def read_processes(given: Given) -> dict[str, Any]:
    """Fields of an adapter from its ``ProcessOptions``."""
    if not given.get("use_usp"):
        given.refuse_unread(dict.fromkeys(("usp_size", "cfg_size"), "it needs use_usp"))
    parts = given.get("cfg_size", "auto")
    sizes = {"usp_size": given.get("usp_size"), "cfg_size": parts if parts == "auto" else int(parts)}
    return {"use_usp": given.get("use_usp", False), **sizes}


def check_usp(use_usp: bool, count: int) -> None:
    """Refuse several processes that are not asked to share a video, and one that is."""
    if count > 1 and not use_usp:
        reason = "which would all make the same video; add --use_usp, or start one"
        raise ValueError(f"torchrun started {count} processes, {reason}.")
    if count == 1 and use_usp:
        remedy = "start the program by torchrun --nproc_per_node 2, or leave it out"
        raise ValueError(f"use_usp: expected several processes for a video, got 1; {remedy}.")
