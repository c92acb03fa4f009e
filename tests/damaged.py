"""Checkpoints with damaged weights."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def damaged(folder: Path, target: Path, tensor: str, change: Callable[[Tensor], Tensor]) -> Path:
    """Copy a checkpoint and change one tensor of it, named by its end; returns the copy."""
    shutil.copytree(folder, target)
    for path in sorted(target.rglob("*.safetensors")):
        weights = load_file(path)
        for name in [name for name in weights if name.endswith(tensor)][:1]:
            save_file(weights | {name: change(weights[name])}, path, metadata={"format": "pt"})
            return target
    raise LookupError(tensor)


def with_nan(weight: Tensor) -> Tensor:
    """The same with NaN for its first number."""
    weight.view(-1)[0] = torch.nan
    return weight
