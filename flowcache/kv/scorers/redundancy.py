"""Drop what other tokens say as well."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

from .base import ScoreInput, Scorer


@dataclass(frozen=True)
class Redundancy(Scorer):
    """Minus the softmax of a key's mean cosine similarity to all others (FlowCache, section 3.3).

    The sum over the others is the product with the sum of all unit keys, less the key's own 1: time and
    memory are linear in the number of keys.
    """

    def score(self, tokens: ScoreInput) -> Tensor:
        units = normalize(tokens.keys.float(), dim=-1)
        similarity = (units * units.sum(dim=-3, keepdim=True)).sum(dim=-1).mT
        return -((similarity - 1) / units.shape[-3]).softmax(dim=-1)
