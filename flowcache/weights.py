"""Types of the weights in checkpoint files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from safetensors import safe_open


def check_float(path: Path, name: str, dtype: torch.dtype | str) -> None:
    """Refuse a tensor of integers or booleans, which loaders would silently convert.

    Args:
        path: of the file, for the message.
        name: of the tensor in it.
        dtype: of the tensor, or as a safetensors header spells it: ``BF16``, ``I32``.

    Raises:
        ValueError: one sentence that names the tensor and the file.
    """
    is_float = dtype.startswith(("F", "BF")) if isinstance(dtype, str) else dtype.is_floating_point
    if not is_float:
        raise ValueError(f"{path}: {name} must hold floating-point numbers, has type {dtype}.")


def check_float_folder(folder: Path) -> None:
    """Refuse a folder with a tensor of integers in its safetensors or ``.bin`` files; no weights are read.

    Raises:
        ValueError: see ``check_float``.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                check_float(path, name, file.get_slice(name).get_dtype())
    for path in filter(zipfile.is_zipfile, sorted(folder.glob("*.bin"))):
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True, mmap=True).items():
            check_float(path, name, tensor.dtype)
