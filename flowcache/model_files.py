"""Files of a model folder, checked before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .typed import as_type
from .user_files import read_json, reading

#: Largest number in a model's configuration, by a part of its key; larger ones would only fill memory.
_LARGEST = {"layers": 1000, "depth": 1000, "blocks": 1000, "heads": 1000, "vocab_size": 2**20}
_LARGEST_OTHER = 2**16
#: Numbers that are at least 1, by the start of their key, and those that are between 0 and 1.
_COUNTS = ("num_", "d_", "depth", "relative_attention_")
_BELOW_ONE = ("eps", "layer_norm_epsilon")


def read_config(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose values have the types of ``like`` and no absurd sizes.

    Args:
        path: of a JSON file.
        like: a value of the right type by key; None, or no such key: any type.

    Raises:
        UnreadableFile: the file cannot be read or has a wrong value; file and key are named.
    """
    content = read_json(path, dict[str, Any], "a configuration")
    with reading(path, "a configuration"):
        for key, value in content.items():
            _check_value(key, value, like.get(key))
    return content


def default_arguments(kind: type) -> dict[str, Any]:
    """Return the default arguments of a class: the ``like`` of its configuration."""
    parameters = signature(kind.__init__).parameters.items()
    return {name: value.default for name, value in parameters if value.default is not Parameter.empty}


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors in a weight file, of which only the header is read.

    Args:
        path: of a safetensors file, or of one that ``torch.save`` wrote as a zip archive.

    Raises:
        UnreadableFile: the file is damaged or cut short, or holds integers.
    """
    kind = "a safetensors file" if path.suffix == ".safetensors" else "a file of PyTorch"
    with reading(path, kind):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                found = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            found = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()}
        for name, (_, dtype) in found.items():
            if "f" not in dtype.lower():  # F32, BF16, F8_E4M3, torch.float32
                raise ValueError(f"{name}: expected floating-point numbers, got {dtype}")
    return {name: shape for name, (shape, _) in found.items()}


def indexed_files(index: Path) -> list[Path]:
    """Return the weight files that an index file names.

    Raises:
        UnreadableFile: the file is no index.
    """
    kind = "an index of weight files"
    content = read_json(index, dict[str, Any], kind)
    with reading(index, kind):
        names = as_type(content.get("weight_map"), dict[str, str], "weight_map").values()
        return sorted({index.with_name(name) for name in names})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder; runs no code from there.

    Raises:
        UnreadableFile: a file of the tokenizer is damaged; it is named.
    """
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
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, folder: Path) -> None:
    """Refuse a tokenizer with tokens that the text encoder lacks.

    Args:
        tokenizer: of the folder.
        size: of the encoder's vocabulary.
        folder: for the message.

    Raises:
        ValueError: one sentence that names the folder.
    """
    if len(tokenizer) > size:
        raise ValueError(
            f"{folder}: expected a tokenizer of at most the text encoder's {size} tokens (vocab_size), got "
            f"{len(tokenizer)}; take both from the same model."
        )


def _check_value(key: str, value: Any, like: Any) -> None:
    """Refuse a value of another type than ``like``, a number that is not finite, or an absurd size."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_value(name, item, None)
    if isinstance(value, list):
        inner = like[0] if isinstance(like, list | tuple) and like else None
        for item in value:
            _check_value(key, item, inner)
    if isinstance(value, int | float):
        most = next((most for part, most in _LARGEST.items() if part in key), _LARGEST_OTHER)
        if not abs(value) <= most:  # NaN
            raise ValueError(f"{key}: expected a number of at most {most}, got {value}")
        if key.startswith(_COUNTS) and value < 1:
            raise ValueError(f"{key}: expected at least 1, got {value}")
        if key in _BELOW_ONE and not 0 < value < 1:
            raise ValueError(f"{key}: expected a number between 0 and 1, got {value}")
    if like is not None and not _has_type(value, like):
        raise ValueError(f"{key}: expected a value such as {json.dumps(like)}, got {json.dumps(value)}")


def _has_type(value: Any, like: Any) -> bool:
    if isinstance(value, bool) or isinstance(like, bool):
        return isinstance(value, bool) and isinstance(like, bool)
    if isinstance(like, list | tuple):
        return isinstance(value, list)
    return isinstance(value, int | float if isinstance(like, float) else type(like))
