"""Files of a model folder, checked before any weight is read."""

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

#: Sanity limits of a configuration's numbers, by a part of the key; the last holds for all others.
_LARGEST = {"layers": 1000, "depth": 1000, "blocks": 1000, "heads": 1000, "vocab_size": 2**20, "": 2**16}
#: Starts of keys of numbers that are at least 1; keys of numbers between 0 and 1.
_COUNTS = ("num_", "d_", "depth", "relative_attention_")
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


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of the tensors in a file of safetensors or ``torch.save``."""
    with reading(path, "weights"):
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
    """Return the weight files that an index file names; raise UnreadableFile if it is no index."""
    with reading(index, "an index of weight files"):
        content = read_json(index, dict[str, Any], "an index of weight files")
        names = as_type(content.get("weight_map"), dict[str, str], "weight_map").values()
        return sorted({index.with_name(name) for name in names})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder; runs no code from there."""
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
    """Raise ValueError for a tokenizer with more tokens than the text encoder's vocabulary."""
    if len(tokenizer) > size:
        most = f"at most the text encoder's {size} tokens (vocab_size)"
        found = f"{len(tokenizer)}; take both from the same model"
        raise ValueError(f"{folder}: expected a tokenizer of {most}, got {found}.")


def _check_value(key: str, value: Any, like: Any) -> None:
    """Raise ValueError for a value of another type than ``like``, or a number outside the limits."""
    for name, item in value.items() if isinstance(value, dict) else ():
        _check_value(name, item, None)
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
