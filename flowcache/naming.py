"""Names of videos whose path the user leaves open."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from .config import FlowCacheConfig
from .methods import DEFAULT_PRESET
from .tuning import Target

#: Bytes of a name without suffix. The longest that is written beside a video is 21 bytes longer,
#: ``.NAME.trace.12345678.json``, and stays below 240.
MAX_BYTES = 218


def video_name(prompt: str, words: Iterable[str], identity: Mapping[str, Any]) -> str:
    """File name of a video, made of ``identity``: all that decides about the video, without its paths."""
    content = json.dumps(identity, sort_keys=True, default=str)
    rest = "_".join([*words, hashlib.sha256(content.encode()).hexdigest()[:8]])
    start = prompt_words(prompt).encode()[: MAX_BYTES - len(rest) - 1].decode(errors="ignore")
    return f"{start}_{rest}.mp4"


def setting_words(
    method: str,
    preset: str | None,
    selected: Mapping[str, float | str | None],
    target: Target | None,
    config: FlowCacheConfig,
) -> list[str]:
    """Words for the method, for what selects the steps to skip, and for what the KV cache keeps.

    ``selected`` are options that select a reuse policy, by name; a target replaces them and the preset.
    """
    given = {name: value for name, value in selected.items() if value is not None}
    chosen = [value if isinstance(value, str) else f"{name}{value:g}" for name, value in given.items()]
    if target is not None:
        chosen = [str(target)]
    elif preset is not None or (method == "flowcache" and not chosen):
        chosen.insert(0, preset or DEFAULT_PRESET)
    compression, storage = config.compression, config.storage
    if compression is not None:
        total = compression.total
        chosen.append(f"budget{compression.budget}" if total is None else f"total{total}")
    if config.clean_range is not None:
        chosen.append(f"kvrange{config.clean_range}")
    if storage is not None:
        chosen += [f"kv{storage.bits}bits"] if storage.bits else []
        chosen += ["kvoffload"] if storage.offload else []
    return [method, *chosen]


def prompt_words(prompt: str) -> str:
    """A prompt as part of a file's name: letters and digits, at most 60 of them and 120 bytes."""
    words = "".join(c if c.isalnum() else " " for c in prompt).split()
    name = "_".join(words)[:60].strip("_")
    return name.encode()[:120].decode(errors="ignore") or "video"
