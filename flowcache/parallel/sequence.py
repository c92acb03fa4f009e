"""Tokens of each frame over processes, and heads within attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .group import Group


@dataclass(frozen=True)
class SequenceShares:
    """The share of each frame's tokens, and within attention of its heads, that a process works on.

    Every frame is split, so that work is even whichever chunks run. Within attention a process has all tokens, in
    their usual order, of a share of the heads: a key-value head with all of its query heads.

    Args:
        group: processes that share the tokens; one: all is its own.
        tokens: of a frame.
        kv_heads: key-value heads of the model.
    """

    group: Group = field(default_factory=Group)
    tokens: int = 1
    kv_heads: int = 1

    def __post_init__(self) -> None:
        if self.tokens < self.group.size:
            raise ValueError(
                f"{self.group.size} processes are too many: a frame has {self.tokens} tokens; "
                f"start at most {self.tokens}, or make larger videos."
            )

    @property
    def own_tokens(self) -> range:
        return self.group.share(self.tokens)

    @property
    def largest(self) -> int:
        """Tokens of a frame in the largest share."""
        return len(self._token_shares[0])

    @property
    def own_heads(self) -> range:
        """Key-value heads of this process."""
        return self.group.share(self.kv_heads)

    def take(self, frames: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor with all tokens of frames along ``dim``."""
        own = self.own_tokens
        return frames.narrow(dim, own.start, len(own)) if self.group.size > 1 else frames

    def join(self, frames: Tensor, dim: int) -> Tensor:
        """All tokens of frames of every process's part along ``dim`` (not negative)."""
        return self.group.gather(frames, dim, [len(share) for share in self.group.shares(self.tokens)])

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens of a share of the heads, for all heads of a share of the tokens.

        Tensors are ``[..., frames, tokens per frame, heads, head_dim]``; keys and values may have fewer heads.
        """
        if self.group.size == 1:
            return query, key, value
        grouped = query.shape[-2] // self.kv_heads  # query heads of a key-value head
        parts = [
            [_heads(query, share, grouped), _heads(key, share), _heads(value, share)]
            for share in self.group.shares(self.kv_heads)
        ]
        kept = [part.shape[-2:] for part in parts[self.group.index]]
        shapes = [[(*query.shape[:-3], len(share), *each) for each in kept] for share in self._token_shares]
        received = self.group.exchange_several(parts, shapes)
        query, key, value = (torch.cat(each, dim=-3) for each in zip(*received, strict=True))
        return query, key, value

    def to_tokens(self, attended: Tensor) -> Tensor:
        """All heads of a share of the tokens, for all tokens of a share of the heads; shaped as in ``to_heads``."""
        if self.group.size == 1:
            return attended
        grouped = attended.shape[-2] // len(self.own_heads)
        parts = [attended.narrow(-3, share.start, len(share)) for share in self._token_shares]
        outer, own, width = attended.shape[:-3], len(self.own_tokens), attended.shape[-1]
        shapes = [(*outer, own, grouped * len(share), width) for share in self.group.shares(self.kv_heads)]
        return torch.cat(self.group.exchange(parts, shapes), dim=-2)

    @property
    def _token_shares(self) -> list[range]:
        return self.group.shares(self.tokens)


def _heads(tensor: Tensor, share: range, grouped: int = 1) -> Tensor:
    """Heads of a share of key-value heads, of which each stands for ``grouped`` ones."""
    return tensor.narrow(-2, share.start * grouped, len(share) * grouped)
