"""Attention of packed segments against a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from flowcache.kv.cache import ChunkKVCache

from .transformer import ProjectText


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


@dataclass(frozen=True)
class PackedSegments:
    """Implements ``Attend``: writes the segments' keys and values into the cache, then lets each read."""

    segments: Sequence[Segment]
    cache: ChunkKVCache
    text: TextBank

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
            parts.append(_attend(q, k, v))
        return torch.cat(parts)

    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        lengths = [segment.length for segment in self.segments]
        parts = [
            _attend(q, *self.text.project(layer, segment.text, project))
            for segment, q in zip(self.segments, query.split(lengths), strict=True)
        ]
        return torch.cat(parts)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``[tokens, heads, head_dim]`` against fewer heads of keys and values."""
    args = (part.unsqueeze(0).type_as(value) for part in (query, key, value))
    return dispatch_attention_fn(*args, enable_gqa=True)[0]
