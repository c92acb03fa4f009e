"""Keys and values in 8 or 4 bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layout import CacheLayout
from .storage import PlainRows

#: Least tokens that share the scales of their keys, where chunks have that many.
LEAST_GROUP = 64

SCALE_DTYPE = torch.float16


@dataclass(frozen=True)
class QuantizationEvent:
    """Quantisation of a chunk that became clean, or of the rows that a compression kept.

    Attributes:
        chunks: that became clean or were compressed.
        key_error, value_error: root mean square of the error over that of the rows, mean over layers.
    """

    chunks: list[int]
    key_error: float
    value_error: float


def quantize(numbers: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise to equal steps between the bounds that numbers along ``dim`` share.

    Returns codes, ``uint8``, with 4 bits two a byte, the second half of the last dimension in the upper bits;
    and step and lower bound, fp16, of size 1 along ``dim``: a number is ``low + step * code``.
    """
    largest = torch.finfo(SCALE_DTYPE).max
    bounds = numbers.aminmax(dim=dim, keepdim=True)
    low, high = (bound.float().clamp(-largest, largest).to(SCALE_DTYPE) for bound in bounds)
    levels = 2**bits - 1
    # Codes refer to the bounds as they are stored; a step of 0 means that all numbers are equal.
    step = ((high.float() - low.float()) / levels).to(SCALE_DTYPE)
    divisor = torch.where(step > 0, step, 1).float()
    codes = ((numbers.float() - low.float()) / divisor).round_().clamp_(0, levels).to(torch.uint8)
    if bits == 4:
        lower, upper = codes.chunk(2, dim=-1)
        codes = lower | (upper << 4)
    return codes, step, low


def dequantize(codes: Tensor, step: Tensor, low: Tensor, bits: int, out: Tensor) -> None:
    """Write the numbers of ``quantize`` to ``out``, which has their shape."""
    low, step = low.float(), step.float()
    if bits == 8:
        torch.addcmul(low, codes, step, out=out)
        return
    for i, half in enumerate((codes & 15, codes >> 4)):
        # Bounds that differ along the last dimension are halved with it.
        lows, steps = (b.chunk(2, dim=-1)[i] if b.shape[-1] > 1 else b for b in (low, step))
        torch.addcmul(lows, half, steps, out=out.chunk(2, dim=-1)[i])


def group_size(unit: int) -> int:
    """Tokens that share the scales of their keys: the least divisor of ``unit``, of which all chunks are
    multiples, that is at least ``LEAST_GROUP``; else ``unit`` itself."""
    return next((size for size in range(LEAST_GROUP, unit) if unit % size == 0), unit)


@dataclass(frozen=True)
class QuantizedRows(PlainRows):
    """Rows in 8 or 4 bits per number, written and read in whole groups.

    Keys share bounds over a group of tokens, each channel of a head by itself, as some channels of keys are
    always large; values over the channels of a head, each token by itself (KIVI, arXiv 2402.02750).
    """

    bits: int
    group: int
    lossy = True

    def allocate(
        self, layout: CacheLayout, rows: int, device: torch.device | str, pinned: bool = False
    ) -> list[Tensor]:
        per_byte = 8 // self.bits
        if layout.head_dim % per_byte:
            raise ValueError(f"bits=4: expected an even number of channels per head, got {layout.head_dim}.")
        *outer, heads, width = layout.shape(rows)
        codes = (*outer, heads, width // per_byte)
        key_bounds, value_bounds = (*outer[:-1], rows // self.group, heads, width), (*outer, heads, 1)
        parts = []
        for bounds in (key_bounds, value_bounds):
            parts += [(codes, torch.uint8), (bounds, SCALE_DTYPE), (bounds, SCALE_DTYPE)]
        return [torch.empty(s, dtype=kind, device=device, pin_memory=pinned) for s, kind in parts]

    def encode(self, keys: Tensor, values: Tensor) -> Sequence[Tensor]:
        codes, step, low = quantize(self._grouped(keys), 2, self.bits)
        return codes.flatten(1, 2), step.squeeze(2), low.squeeze(2), *quantize(values, -1, self.bits)

    def decode(self, parts: Sequence[Tensor], keys: Tensor, values: Tensor) -> None:
        codes, step, low = parts[:3]
        grouped = self._grouped(codes), step.unsqueeze(2), low.unsqueeze(2)
        dequantize(*grouped, self.bits, self._grouped(keys))
        dequantize(*parts[3:], self.bits, values)

    def _grouped(self, rows: Tensor) -> Tensor:
        """View ``[branches, groups, tokens, heads, ...]``."""
        return rows.unflatten(1, (-1, self.group))
