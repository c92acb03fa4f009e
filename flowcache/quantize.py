"""Weights in 8 or 4 bits, by torchao; products run in the type of their input."""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .environment import quiet_imports, require

#: int8: a scale for each row. fp8: e4m3, a scale for each row. int4: ``flowcache.int4``.
FORMATS = ("int8", "fp8", "int4")


@torch.no_grad()
def quantize_weights(module: nn.Module, kind: str) -> None:
    """Quantise the linear layers of a module's blocks, in place and one after another.

    Layers outside of the blocks stay as they are: embeddings, the condition, the head.
    """
    torchao = load_torchao()
    blocks = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, nn.ModuleList))

    def is_inside(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and name.startswith(blocks)

    torchao.quantize_(module, _config(torchao, kind), is_inside)


def load_torchao() -> Any:
    """Import ``torchao.quantization``; Unavailable where it is not installed."""
    with quiet_imports():
        require("torchao", "quantize", "quant")
        return import_module("torchao.quantization")


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the values of a quantised weight; of a plain one, itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in plain_parts(getattr(tensor, name))]


def _config(torchao: Any, kind: str) -> Any:
    if kind == "int4":
        from .int4 import Int4Config

        return Int4Config()
    return torchao.Int8WeightOnlyConfig(version=2) if kind == "int8" else torchao.Float8WeightOnlyConfig()
