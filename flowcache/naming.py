"""Names of videos whose path the user leaves open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .command_line import words_of
from .config import FlowCacheConfig
from .tuning import Target

#: Bytes of a name without suffix: what is written beside a video and its temporary files add up to 21
#: (``.NAME.trace.12345678.json``), and some file systems end at 240.
MAX_BYTES = 218


def video_name(prompt: str, words: Iterable[str], identity: Mapping[str, Any]) -> str:
    """Name of a video's file: the same for the same settings, another for any other.

    Args:
        prompt: its first words begin the name.
        words: what a reader wants to tell apart at a glance.
        identity: all that decides about the video, with digests in place of weights, images and videos, and
            without paths, so that the name depends neither on where the model lies nor on file names.
    """
    content = json.dumps(identity, sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    rest = "_".join([*words, digest])
    start = words_of(prompt).encode()[: MAX_BYTES - len(rest) - 1].decode(errors="ignore")
    return f"{start}_{rest}.mp4"


def method_words(
    method: str, preset: str | None, options: Mapping[str, Any], target: Target | None
) -> list[str]:
    """The method, and the target or else the preset and options that choose the steps to skip.

    Args:
        method: its name.
        preset: None: left open.
        options: values by name; None where an option is left open.
        target: None: none.
    """
    if target is not None:
        return [method, str(target)]
    chosen = [f"{name}{value:g}" for name, value in options.items() if value is not None]
    return [method, *([preset] if preset else []), *chosen]


def cache_words(cache: FlowCacheConfig) -> list[str]:
    """What the KV cache keeps of clean chunks, where it is less than all."""
    words = []
    if cache.compression is not None:
        total, budget = cache.compression.total, cache.compression.budget
        words.append(f"budget{budget}" if total is None else f"total{total}")
    if cache.clean_range is not None:
        words.append(f"kvrange{cache.clean_range}")
    if cache.storage is not None:
        words += [f"kv{cache.storage.bits}bits"] if cache.storage.bits else []
        words += ["kvoffload"] if cache.storage.offload else []
    return words
