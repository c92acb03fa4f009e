"""Attention of packed segments against a KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from typing import Protocol

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils import is_flash_attn_3_available, is_flash_attn_available, is_flash_attn_version
from torch import Tensor

from flowcache.kv.cache import ChunkKVCache

from .transformer import ProjectText

logger = logging.getLogger(__name__)

#: Diffusers' variable for an attention backend; it wins over our choice.
BACKEND_VARIABLE = "DIFFUSERS_ATTN_BACKEND"

#: The oldest flash-attention 2 that is taken, and the architecture that version 3 is written for.
FLASH_2_VERSION, FLASH_3_CAPABILITY = "2.6.3", (9, 0)


#: Keys and values, ``[tokens, groups, head_dim]`` each.
KeysValues = tuple[Tensor, Tensor]


class PackedAttention(Protocol):
    """Attention of several segments, each to keys and values of its own, without a mask."""

    def __call__(self, query: Tensor, lengths: Sequence[int], seen: Iterable[KeysValues]) -> Tensor:
        """Run it.

        Args:
            query: of all segments, ``[tokens, heads, head_dim]``.
            lengths: tokens of each segment.
            seen: by each segment; good until the next is asked for, as a cache may move what it holds then.

        Returns:
            ``[tokens, heads, head_dim]``.
        """
        ...


@dataclass(frozen=True)
class OneByOne:
    """One of diffusers' backends, segment by segment, so that keys are read where they lie.

    Attributes:
        backend: None leaves it to ``DIFFUSERS_ATTN_BACKEND``.
    """

    backend: AttentionBackendName | None = AttentionBackendName.NATIVE

    def __call__(self, query: Tensor, lengths: Sequence[int], seen: Iterable[KeysValues]) -> Tensor:
        parts = []
        for q, (k, v) in zip(query.split(lengths), seen, strict=True):
            args = (part.unsqueeze(0).type_as(v) for part in (q, k, v))
            parts.append(dispatch_attention_fn(*args, enable_gqa=True, backend=self.backend)[0])
        return torch.cat(parts)


@dataclass(frozen=True)
class FlashVarlen:
    """Flash-attention's function for packed segments of various lengths: one call for all.

    What the segments see overlaps, but the function wants it side by side; it is copied for the call.

    Attributes:
        function: ``flash_attn_varlen_func`` of version 2 or 3.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    _bounds: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, query: Tensor, lengths: Sequence[int], seen: Iterable[KeysValues]) -> Tensor:
        if len(lengths) == 1:
            keys, values = map(list, zip(*seen, strict=True))
        else:
            keys, values = map(list, zip(*((k.clone(), v.clone()) for k, v in seen), strict=True))
        counts = [len(key) for key in keys]
        out = self.function(
            query.type_as(values[0]),
            _joined(keys).type_as(values[0]),
            _joined(values),
            cu_seqlens_q=self._bounds_of(lengths, query.device),
            cu_seqlens_k=self._bounds_of(counts, query.device),
            max_seqlen_q=max(lengths),
            max_seqlen_k=max(counts),
        )
        return out[0] if isinstance(out, tuple) else out  # version 3 may add the sums of the softmax

    def _bounds_of(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """Where the segments begin, and the end; the same in all layers, and at many steps."""
        place = tuple(lengths)
        if place not in self._bounds:
            # Filled on the device: a tensor made of a list would have to be copied, and waited for.
            ends = [0, *accumulate(lengths)]
            parts = [torch.full((1,), end, dtype=torch.int32, device=device) for end in ends]
            self._bounds[place] = torch.cat(parts)
        return self._bounds[place]


def choose_attention(device: torch.device, dtype: torch.dtype) -> PackedAttention:
    """Which attention suits a device, said in the log.

    Flash-attention 3 or 2 where it is installed and knows device and type, else PyTorch's own, which chooses
    among its kernels itself; ``DIFFUSERS_ATTN_BACKEND`` wins over both.

    Args:
        device: where attention runs.
        dtype: of keys and values.
    """
    if asked := os.environ.get(BACKEND_VARIABLE):
        logger.info("attention: %s, as %s says", asked, BACKEND_VARIABLE)
        return OneByOne(None)
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        if is_flash_attn_3_available() and torch.cuda.get_device_capability(device) == FLASH_3_CAPABILITY:
            return _flash("flash-attention 3", "flash_attn_interface")
        if is_flash_attn_available() and is_flash_attn_version(">=", FLASH_2_VERSION):
            return _flash("flash-attention 2", "flash_attn")
    logger.info("attention: PyTorch's own, segment by segment")
    return OneByOne()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Several side by side; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _flash(name: str, module: str) -> FlashVarlen:
    logger.info("attention: %s, all segments in one call", name)
    return FlashVarlen(import_module(module).flash_attn_varlen_func)


@dataclass(frozen=True)
class Segment:
    """One chunk in one guidance branch, as attention needs to know it.

    Attributes:
        chunk: index of the chunk.
        length: tokens.
        text: index of its caption in the ``TextBank``.
        slot: place in the cache; None: sees itself alone and leaves nothing.
        first_chunk: the oldest chunk that it sees; None: all that the cache holds.
    """

    chunk: int
    length: int
    text: int
    slot: int | None
    first_chunk: int | None = None


@dataclass
class TextBank:
    """Embedded captions ``[tokens, cross_dim]``, and the keys and values that each layer makes of them."""

    captions: list[Tensor]
    keys_values: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def project(self, layer: int, caption: int, project: ProjectText) -> tuple[Tensor, Tensor]:
        """Keys and values of a caption at a layer, ``[tokens, groups, head_dim]`` each."""
        place = (layer, caption)
        if place not in self.keys_values:
            self.keys_values[place] = project(self.captions[caption])
        return self.keys_values[place]

    def forget_before(self, caption: int) -> None:
        """Drop the keys and values of captions that stand before one."""
        for place in [place for place in self.keys_values if place[1] < caption]:
            del self.keys_values[place]


@dataclass(frozen=True)
class PackedSegments:
    """Implements ``Attend``: writes the segments' keys and values into the cache, then lets each read."""

    segments: Sequence[Segment]
    cache: ChunkKVCache
    text: TextBank
    attention: PackedAttention = field(default_factory=OneByOne)

    # Which segments there are changes from step to step; a compiled block must not be made anew for each.
    @torch.compiler.disable
    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        lengths = self._lengths
        own = list(zip(key.split(lengths), value.split(lengths), strict=True))
        for segment, (k, v) in zip(self.segments, own, strict=True):
            if segment.slot is not None:
                self.cache.write(layer, segment.chunk, k, v, segment.slot)
        return self.attention(query, lengths, self._seen(layer, query.split(lengths), own))

    @torch.compiler.disable
    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        seen = (self.text.project(layer, segment.text, project) for segment in self.segments)
        return self.attention(query, self._lengths, seen)

    def _seen(self, layer: int, queries: Sequence[Tensor], own: Sequence[KeysValues]) -> Iterator[KeysValues]:
        """What each segment sees: of the cache, or, if it leaves nothing there, itself."""
        for segment, query, alone in zip(self.segments, queries, own, strict=True):
            if segment.slot is None:
                yield alone
                continue
            self.cache.observe(layer, segment.chunk, query, segment.slot)
            keys, values = self.cache.read(layer, segment.chunk, segment.first_chunk)
            yield keys[segment.slot], values[segment.slot]

    @property
    def _lengths(self) -> list[int]:
        return [segment.length for segment in self.segments]
