"""Keys and values in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import CacheLayout

BITS = (8, 4)

#: Least tokens that share the scales of their keys, where chunks have that many.
LEAST_GROUP = 64

#: Of scales and lower bounds.
SCALE_DTYPE = torch.float16


@dataclass(frozen=True)
class QuantizationEvent:
    """Rows were quantised: those of a chunk that became clean, or those that a compression kept.

    Attributes:
        chunks: that became clean or were compressed.
        key_error, value_error: root mean square of the change over that of the rows, mean over layers.
    """

    chunks: list[int]
    key_error: float
    value_error: float


@dataclass(frozen=True)
class Codes:
    """Numbers in ``bits`` bits each, between bounds that some share: ``low + scale * code``.

    Attributes:
        codes: ``uint8``; with 4 bits two a byte, the second half of the last dimension in the upper bits.
        scale, low: fp16, of size 1 along the dimension whose numbers share them.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor


def quantize(numbers: Tensor, dim: int, bits: int) -> Codes:
    """Quantise to equal steps from the least to the largest number along ``dim``.

    Args:
        numbers: of any floating type.
        dim: numbers along it share their bounds.
        bits: 8, or 4 for a last dimension of even size.
    """
    largest = torch.finfo(SCALE_DTYPE).max
    bounds = numbers.aminmax(dim=dim, keepdim=True)
    low, high = (bound.clamp(-largest, largest).to(SCALE_DTYPE) for bound in bounds)
    levels = 2**bits - 1
    # Codes are those of the bounds as they are stored; numbers that are all the same need no step.
    scale = ((high.float() - low.float()) / levels).to(SCALE_DTYPE)
    steps = torch.where(scale > 0, scale, 1).float()
    codes = ((numbers.float() - low.float()) / steps).round_().clamp_(0, levels).to(torch.uint8)
    return Codes(_pack(codes) if bits == 4 else codes, scale, low)


def dequantize(quantized: Codes, bits: int, out: Tensor) -> None:
    """Write the numbers back to ``out``, which has their shape."""
    low, scale = quantized.low.float(), quantized.scale.float()
    if bits == 8:
        torch.addcmul(low, quantized.codes, scale, out=out)
        return
    halves = (quantized.codes & 15, quantized.codes >> 4)
    for i, (codes, place) in enumerate(zip(halves, out.chunk(2, dim=-1), strict=True)):
        # bounds that differ along the last dimension are halved with it
        bounds = [b.chunk(2, dim=-1)[i] if b.shape[-1] > 1 else b for b in (low, scale)]
        torch.addcmul(bounds[0], codes, bounds[1], out=place)


def _pack(codes: Tensor) -> Tensor:
    lower, upper = codes.chunk(2, dim=-1)
    return lower | (upper << 4)


def group_size(unit: int) -> int:
    """Tokens that share the scales of their keys, where all chunks are multiples of ``unit`` tokens.

    The smallest divisor of ``unit`` that is at least ``LEAST_GROUP``; ``unit`` itself if there is none.
    """
    return next((size for size in range(LEAST_GROUP, unit) if unit % size == 0), unit)


@dataclass(frozen=True)
class QuantizedRows:
    """Implements ``RowFormat``: rows in 8 or 4 bits a number.

    Keys share their bounds over a group of tokens, each channel of each head by itself, since some channels
    of keys are always large; values over the channels of a head, each token by itself (KIVI, arXiv
    2402.02750, section 3).

    Args:
        bits: 8 or 4.
        group: tokens that share the scales of keys; rows are written and read in whole groups.

    Raises:
        ValueError: 4 bits and heads of an odd number of channels, when memory is allocated.
    """

    bits: int
    group: int
    lossy = True

    def allocate(
        self, layout: CacheLayout, rows: int, device: torch.device | str, pinned: bool = False
    ) -> list[Tensor]:
        per_byte = 8 // self.bits
        if layout.head_dim % per_byte:
            raise ValueError(f"bits=4 needs heads with an even number of channels, got {layout.head_dim}.")
        outer, heads, width = (layout.num_layers, layout.num_branches), layout.num_heads, layout.head_dim
        codes = (*outer, rows, heads, width // per_byte)
        of_keys, of_values = (*outer, rows // self.group, heads, width), (*outer, rows, heads, 1)
        kinds = [(codes, torch.uint8), (of_keys, SCALE_DTYPE), (of_keys, SCALE_DTYPE)]
        kinds += [(codes, torch.uint8), (of_values, SCALE_DTYPE), (of_values, SCALE_DTYPE)]
        return [torch.empty(s, dtype=kind, device=device, pin_memory=pinned) for s, kind in kinds]

    def encode(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        by_group = quantize(self._grouped(keys), 2, self.bits)
        by_token = quantize(values, -1, self.bits)
        of_keys = (by_group.codes.flatten(1, 2), by_group.scale.squeeze(2), by_group.low.squeeze(2))
        return *of_keys, by_token.codes, by_token.scale, by_token.low

    def decode(self, parts: Sequence[Tensor], keys: Tensor, values: Tensor) -> None:
        codes, scale, low = parts[:3]
        by_group = Codes(self._grouped(codes), scale.unsqueeze(2), low.unsqueeze(2))
        dequantize(by_group, self.bits, self._grouped(keys))
        dequantize(Codes(*parts[3:]), self.bits, values)

    def _grouped(self, rows: Tensor) -> Tensor:
        """``[branches, groups, tokens, heads, ...]``, a view."""
        return rows.unflatten(1, (-1, self.group))
