"""Attention of packed segments against a KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.utils import is_flash_attn_3_available, is_flash_attn_available, is_flash_attn_version
from torch import Tensor

from flowcache.kv.cache import ChunkKVCache

from .transformer import ProjectText

logger = logging.getLogger(__name__)

#: Diffusers' variable for an attention backend; it wins over our choice.
BACKEND_VARIABLE = "DIFFUSERS_ATTN_BACKEND"

#: The oldest flash-attention 2 that diffusers calls, and the architecture that version 3 is written for.
FLASH_2_VERSION, FLASH_3_CAPABILITY = "2.6.3", (9, 0)


def choose_backend(device: torch.device, dtype: torch.dtype) -> AttentionBackendName | None:
    """Which of diffusers' attention backends suits a device, said in the log.

    Flash-attention 3 or 2 where it is installed and knows device and type, else PyTorch's own, which chooses
    among its kernels itself.

    Args:
        device: where attention runs.
        dtype: of keys and values.

    Returns:
        The backend; None leaves it to ``DIFFUSERS_ATTN_BACKEND``, which is set.
    """
    if asked := os.environ.get(BACKEND_VARIABLE):
        logger.info("attention: %s, as %s says", asked, BACKEND_VARIABLE)
        return None
    backend = AttentionBackendName.NATIVE
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        if is_flash_attn_3_available() and torch.cuda.get_device_capability(device) == FLASH_3_CAPABILITY:
            backend = AttentionBackendName._FLASH_3
        elif is_flash_attn_available() and is_flash_attn_version(">=", FLASH_2_VERSION):
            backend = AttentionBackendName.FLASH
    logger.info("attention: %s", backend.value)
    return backend


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
    backend: AttentionBackendName | None = None

    # Which segments there are changes from step to step; a compiled block must not be made anew for each.
    @torch.compiler.disable
    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        lengths = [segment.length for segment in self.segments]
        keys, values = key.split(lengths), value.split(lengths)
        for segment, k, v in zip(self.segments, keys, values, strict=True):
            if segment.slot is not None:
                self.cache.write(layer, segment.chunk, k, v, segment.slot)
        parts = []
        for segment, q, k, v in zip(self.segments, query.split(lengths), keys, values, strict=True):
            if segment.slot is not None:
                self.cache.observe(layer, segment.chunk, q, segment.slot)
                seen = self.cache.read(layer, segment.chunk, segment.first_chunk)
                k, v = (part[segment.slot] for part in seen)
            parts.append(self._attend(q, k, v))
        return torch.cat(parts)

    @torch.compiler.disable
    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        lengths = [segment.length for segment in self.segments]
        parts = [
            self._attend(q, *self.text.project(layer, segment.text, project))
            for segment, q in zip(self.segments, query.split(lengths), strict=True)
        ]
        return torch.cat(parts)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[tokens, heads, head_dim]`` against fewer heads of keys and values."""
        args = (part.unsqueeze(0).type_as(value) for part in (query, key, value))
        return dispatch_attention_fn(*args, enable_gqa=True, backend=self.backend)[0]
