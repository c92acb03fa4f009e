"""Drop what others say as well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Redundancy(Scorer):
    """Minus the softmax of a key's mean cosine similarity to all others (FlowCache, section 3.3).

    The sum over the others is the product with the sum of all unit keys, less the key's own 1; so time and
    memory grow with the number of keys, not with its square.
    """

    def score(self, tokens: ScoreInput) -> Tensor:
        units = normalize(tokens.keys.float(), dim=-1)
        similarity = torch.einsum("thd,hd->ht", units, units.sum(dim=0))
        return -((similarity - 1) / len(units)).softmax(dim=-1)
