"""Attention of packed segments against a KV cache."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from flowcache.attention import attend
from flowcache.kv.cache import ChunkKVCache
from flowcache.parallel import SequenceShares

from .transformer import ProjectText

#: Keys and values, ``[tokens, groups, head_dim]`` each.
KeysValues = tuple[Tensor, Tensor]


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

    def keep(self, captions: Collection[int]) -> None:
        """Drop keys and values of other captions; they are projected again when they are next read."""
        for place in [place for place in self.keys_values if place[1] not in captions]:
            del self.keys_values[place]


@dataclass(frozen=True)
class PackedSegments:
    """Implements ``Attend``: stores the keys and values of all segments, then lets each attend.

    Segments' lengths are all of their tokens; ``shares`` says which of each frame are this process's own.
    """

    segments: Sequence[Segment]
    cache: ChunkKVCache
    text: TextBank
    shares: SequenceShares = field(default_factory=SequenceShares)

    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        frames, lengths = (-1, len(self.shares.own_tokens)), [segment.length for segment in self.segments]
        divided = self.shares.to_heads(*(x.unflatten(0, frames) for x in (query, key, value)))
        parts = (x.flatten(0, 1).split(lengths) for x in divided)
        packed = list(zip(self.segments, *parts, strict=True))
        for segment, _, k, v in packed:
            if segment.slot is not None:
                self.cache.write(layer, segment.chunk, k, v, segment.slot)
        attended = _join([self._attend(layer, *each) for each in packed])
        return self.shares.to_tokens(attended.unflatten(0, (-1, self.shares.tokens))).flatten(0, 1)

    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        queries = query.split([length for _, length in self._text_runs])
        seen = (self.text.project(layer, text, project) for text, _ in self._text_runs)
        return _join([_attend_one(own, *pair) for own, pair in zip(queries, seen, strict=True)])

    @cached_property
    def _text_runs(self) -> list[tuple[int, int]]:
        """Captions and own tokens of neighbours that share one, which attend together."""
        runs, own = groupby(self.segments, lambda segment: segment.text), len(self.shares.own_tokens)
        return [(text, sum(segment.length // self.shares.tokens * own for segment in run)) for text, run in runs]

    def _attend(self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if segment.slot is not None:
            self.cache.observe(layer, segment.chunk, query, segment.slot)
            key, value = self.cache.read(layer, segment.chunk, segment.first_chunk, segment.slot)
        return _attend_one(query, key, value)


def _attend_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend(query.type_as(value).unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0))[0]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
