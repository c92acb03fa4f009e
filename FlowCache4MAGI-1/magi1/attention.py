"""Attention of packed segments against a KV cache."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils import is_flash_attn_3_available, is_flash_attn_available, is_flash_attn_version
from torch import Tensor

from flowcache.kv.cache import ChunkKVCache

from .transformer import ProjectText

logger = logging.getLogger(__name__)

#: Diffusers' variable for an attention backend; it wins over our choice.
BACKEND_VARIABLE = "DIFFUSERS_ATTN_BACKEND"

#: The oldest supported flash-attention 2, and the architecture that version 3 is written for.
FLASH_2_VERSION, FLASH_3_CAPABILITY = "2.6.3", (9, 0)

#: Keys and values, ``[tokens, groups, head_dim]`` each.
KeysValues = tuple[Tensor, Tensor]

#: Attention of several segments without a mask: ``query [tokens, heads, head_dim]`` of all segments, tokens
#: of each, and the keys and values of each (valid until the next are taken, as a cache may reuse the
#: memory), to the shape of ``query``.
PackedAttention = Callable[[Tensor, Sequence[int], Iterable[KeysValues]], Tensor]


@dataclass(frozen=True)
class PerSegmentAttention:
    """A backend of diffusers, segment by segment; None: the one that ``DIFFUSERS_ATTN_BACKEND`` names."""

    backend: AttentionBackendName | None = AttentionBackendName.NATIVE

    def __call__(self, query: Tensor, lengths: Sequence[int], seen: Iterable[KeysValues]) -> Tensor:
        parts = []
        for q, (k, v) in zip(query.split(lengths), seen, strict=True):
            args = (part.unsqueeze(0).type_as(v) for part in (q, k, v))
            parts.append(dispatch_attention_fn(*args, enable_gqa=True, backend=self.backend)[0])
        return torch.cat(parts)


@dataclass(frozen=True)
class FlashVarlen:
    """``flash_attn_varlen_func`` of flash-attention 2 or 3: one call for all segments.

    The context of the segments overlaps, but the function takes it side by side, in a copy.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    _bounds: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, query: Tensor, lengths: Sequence[int], seen: Iterable[KeysValues]) -> Tensor:
        if len(lengths) > 1:
            seen = ((k.clone(), v.clone()) for k, v in seen)
        keys, values = map(list, zip(*seen, strict=True))
        counts = [len(key) for key in keys]
        joined = _join(values)
        out = self.function(
            query.type_as(joined),
            _join(keys).type_as(joined),
            joined,
            cu_seqlens_q=self._find_bounds(lengths, query.device),
            cu_seqlens_k=self._find_bounds(counts, query.device),
            max_seqlen_q=max(lengths),
            max_seqlen_k=max(counts),
        )
        return out[0] if isinstance(out, tuple) else out  # version 3 may add the sums of the softmax

    def _find_bounds(self, lengths: Sequence[int], device: torch.device) -> Tensor:
        """Starts of the segments, and the end; cached, as layers and most steps share them."""
        place = tuple(lengths)
        if place not in self._bounds:
            # Filled on the device: the host would have to wait for the copy of a list.
            ends = [0, *accumulate(lengths)]
            parts = [torch.full((1,), end, dtype=torch.int32, device=device) for end in ends]
            self._bounds[place] = torch.cat(parts)
        return self._bounds[place]


def choose_attention(device: torch.device, dtype: torch.dtype) -> PackedAttention:
    """Choose and log the attention for a device and the type of keys and values.

    Flash-attention 3 or 2 where installed and supported, else PyTorch's own; ``DIFFUSERS_ATTN_BACKEND`` wins.
    """
    if asked := os.environ.get(BACKEND_VARIABLE):
        logger.info("attention: %s, as %s says", asked, BACKEND_VARIABLE)
        return PerSegmentAttention(None)
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        if is_flash_attn_3_available() and torch.cuda.get_device_capability(device) == FLASH_3_CAPABILITY:
            return _load_flash(3, "flash_attn_interface")
        if is_flash_attn_available() and is_flash_attn_version(">=", FLASH_2_VERSION):
            return _load_flash(2, "flash_attn")
    logger.info("attention: PyTorch's own, segment by segment")
    return PerSegmentAttention()


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _load_flash(version: int, module: str) -> FlashVarlen:
    logger.info("attention: flash-attention %d, all segments in one call", version)
    return FlashVarlen(import_module(module).flash_attn_varlen_func)


@dataclass(frozen=True)
class Segment:
    """One chunk in one guidance branch, for attention."""

    chunk: int
    length: int
    text: int  # index of the caption in the ``TextBank``
    slot: int | None  # branch of the cache; None: the segment sees itself alone and stores nothing
    first_chunk: int | None = None  # the oldest chunk that the segment sees; None: all that the cache holds


@dataclass
class TextBank:
    """Embedded captions ``[tokens, cross_dim]``, and their keys and values by layer and caption."""

    captions: list[Tensor]
    keys_values: dict[tuple[int, int], KeysValues] = field(default_factory=dict)

    def project(self, layer: int, caption: int, project: ProjectText) -> KeysValues:
        """Keys and values of a caption at a layer, ``[tokens, groups, head_dim]`` each."""
        place = (layer, caption)
        if place not in self.keys_values:
            self.keys_values[place] = project(self.captions[caption])
        return self.keys_values[place]

    def forget_before(self, caption: int) -> None:
        for place in [place for place in self.keys_values if place[1] < caption]:
            del self.keys_values[place]


@dataclass(frozen=True)
class PackedSegments:
    """Implements ``Attend``: stores the keys and values of all segments, then lets each attend."""

    segments: Sequence[Segment]
    cache: ChunkKVCache
    text: TextBank
    attention: PackedAttention = field(default_factory=PerSegmentAttention)

    # The segments change from step to step; a compiled block must not be compiled again for each.
    @torch.compiler.disable
    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        lengths = [segment.length for segment in self.segments]
        own = list(zip(key.split(lengths), value.split(lengths), strict=True))
        for segment, (k, v) in zip(self.segments, own, strict=True):
            if segment.slot is not None:
                self.cache.write(layer, segment.chunk, k, v, segment.slot)
        return self.attention(query, lengths, self._read(layer, query.split(lengths), own))

    @torch.compiler.disable
    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        seen = (self.text.project(layer, segment.text, project) for segment in self.segments)
        return self.attention(query, [segment.length for segment in self.segments], seen)

    def _read(self, layer: int, queries: Sequence[Tensor], own: Sequence[KeysValues]) -> Iterator[KeysValues]:
        for segment, query, alone in zip(self.segments, queries, own, strict=True):
            if segment.slot is None:
                yield alone
                continue
            self.cache.observe(layer, segment.chunk, query, segment.slot)
            keys, values = self.cache.read(layer, segment.chunk, segment.first_chunk)
            yield keys[segment.slot], values[segment.slot]
