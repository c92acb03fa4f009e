"""Weights in 4 bits as tensors of torchao, on any device.

torchao's own packings run on CUDA alone, on a CPU alone, or take a byte per weight.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchao.core.config import AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler
from torchao.utils import TorchAOBaseTensor

from .kv.quantized import dequantize, quantize

#: Most weights of a row that share bounds, fewer where a row is no multiple; a layer with less than the least stays.
GROUP, LEAST_GROUP = 64, 8


class Int4Tensor(TorchAOBaseTensor):
    """A weight ``[out, in]`` in equal steps between the bounds of each group of a row.

    ``codes [out, groups, group / 2]``, two a byte; ``step`` and ``low``, ``[out, groups, 1]``, fp16. A product turns
    all into the type of its other factor first.
    """

    tensor_data_names: ClassVar = ["codes", "step", "low"]
    tensor_attribute_names: ClassVar = ["dtype"]

    def __new__(cls, codes: Tensor, step: Tensor, low: Tensor, dtype: torch.dtype) -> Self:
        shape = len(codes), codes.shape[1] * codes.shape[2] * 2
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=codes.device)

    def __init__(self, codes: Tensor, step: Tensor, low: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes, self.step, self.low = codes, step, low

    @classmethod
    def from_plain(cls, weight: Tensor, group: int) -> Self:
        return cls(*quantize(weight.unflatten(1, (-1, group)), -1, bits=4), weight.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        rows, groups, half = self.codes.shape
        out = self.codes.new_empty(rows, groups, 2 * half, dtype=dtype or self.dtype)
        dequantize(self.codes, self.step, self.low, 4, out)
        return out.flatten(1)


@Int4Tensor.implements(torch.ops.aten.linear.default)
@Int4Tensor.implements_torch_function(functional.linear)
def _linear(func: Any, types: Any, args: Any, kwargs: Any) -> Tensor:
    given, weight, *bias = args
    return functional.linear(given, weight.dequantize(given.dtype), *bias, **kwargs)


@dataclass
class Int4Config(AOBaseConfig):
    """Configuration for ``quantize_`` and diffusers' ``TorchAoConfig``."""

    group: int = GROUP


@register_quantize_module_handler(Int4Config)
def _quantise_layer(layer: nn.Module, config: Int4Config) -> nn.Module:
    group = math.gcd(config.group, layer.weight.shape[1])
    if group >= LEAST_GROUP:
        layer.weight = nn.Parameter(Int4Tensor.from_plain(layer.weight, group), requires_grad=False)
    return layer
