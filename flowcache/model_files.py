"""Configurations and tokenizers of a model folder, checked before any weight is read."""

import json
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .user_files import read_json, reading

#: File beside the weights of a model that holds the default settings of its videos.
DEFAULTS_FILE = "defaults.json"

#: Sanity limits of a configuration's numbers, by a part of the key; the last holds for all others.
_LARGEST = {"layers": 1000, "depth": 1000, "blocks": 1000, "heads": 1000, "vocab_size": 2**20, "": 2**16}
#: Starts of keys of numbers that are at least 1; keys of numbers between 0 and 1.
_COUNTS = ("num_", "d_", "depth", "relative_attention_", "embed_dim", "patch_", "z_chans", "in_chan")
_BELOW_ONE = ("eps", "layer_norm_epsilon")


def read_config(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON configuration, whose values must have the types of ``like`` and sane sizes."""
    with reading(path, "a configuration"):
        content = read_json(path, dict[str, Any], "a configuration")
        for key, value in content.items():
            _check_value(key, value, like.get(key))
    return content


def default_arguments(kind: type) -> dict[str, Any]:
    """Return the default arguments of a class, the ``like`` of its configuration."""
    parameters = signature(kind.__init__).parameters.items()
    return {name: value.default for name, value in parameters if value.default is not Parameter.empty}


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder; runs no code from there. ``vocab_size``: of the text encoder."""
    for path in sorted(folder.glob("*.json")):
        read_json(path, dict[str, Any], "JSON")
    files = [folder / name for name in ("tokenizer.json", "spiece.model") if (folder / name).is_file()]
    with reading(files[0] if files else folder, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        longest = tokenizer.model_max_length
        if not isinstance(longest, int) or longest < 2:
            raise ValueError(f"model_max_length: expected a whole number of at least 2, got {longest!r}")
        # Some damage shows only in use.
        tokenizer("a", padding="max_length", max_length=2, truncation=True, return_offsets_mapping=True)
        if vocab_size is not None and len(tokenizer) > vocab_size:
            wanted = f"at most the text encoder's {vocab_size} tokens (vocab_size)"
            raise ValueError(f"expected {wanted}, got {len(tokenizer)}; take both from the same model")
    return tokenizer


def _check_value(key: str, value: Any, like: Any) -> None:
    """Raise ValueError for a value of another type than ``like``, or a number outside the limits."""
    for name, item in value.items() if isinstance(value, dict) else ():
        _check_value(name, item, like.get(name) if isinstance(like, dict) else None)
    for item in value if isinstance(value, list) else ():
        _check_value(key, item, like[0] if isinstance(like, list | tuple) and like else None)
    if isinstance(value, int | float):
        most = next(most for part, most in _LARGEST.items() if part in key)
        if not abs(value) <= most:  # NaN
            raise ValueError(f"{key}: expected a number of at most {most}, got {value}")
        if key.startswith(_COUNTS) and value < 1:
            raise ValueError(f"{key}: expected at least 1, got {value}")
        if key in _BELOW_ONE and not 0 < value < 1:
            raise ValueError(f"{key}: expected a number between 0 and 1, got {value}")
    kinds = {tuple: list, float: int | float}.get(type(like), type(like))
    fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(like, bool)
    if like is not None and not fits:
        raise ValueError(f"{key}: expected a value such as {json.dumps(like)}, got {json.dumps(value)}")
