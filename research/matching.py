"""Variants of compaction that are measured beside the default: ridges by cross-validation, and rows per head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowcache.kv.compactors import Compactor
from flowcache.kv.compactors.base import take_rows
from flowcache.kv.compactors.matched import match_mass, match_outputs
from flowcache.kv.scorers import ScoreInput
from flowcache.registry import option

#: Ridges among which cross-validation chooses, over the mean diagonal: factors of about 3 around our constants.
MASS_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
VALUE_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class CrossValidated(Compactor):
    """``Matched`` with both ridges chosen by cross-validation, per layer, branch and KV head, at each compaction.

    For each fold of the recorded queries, a regression with each ridge is fitted to the other folds; the ridge with
    the least squared error for the queries left out, over all folds, then fits all. Keys come first, by the log of
    the attention mass; then values, by attention's output, to keys that have not seen those queries, either.

    Args:
        folds: number of folds.
        adjacent: a fold is adjacent queries, so of a chunk or two; False: every ``folds``-th query.
    """

    folds: int = option(4, 2, 64)
    adjacent: bool = False

    def compact(self, tokens: ScoreInput, kept: Tensor) -> tuple[Tensor, Tensor]:
        blocks, outputs = tokens.attention
        queries, mass, asked = blocks.queries, blocks.mass, tokens.queries.shape[1]
        keys, values = (take_rows(rows, kept).transpose(1, 2).float() for rows in (tokens.keys, tokens.values))
        place = torch.arange(asked, device=keys.device)
        folds = place * self.folds // asked if self.adjacent else place % self.folds
        folds = folds.repeat(queries.shape[-2] // asked)  # a token's query heads are in the same fold
        parts = [(folds != fold, folds == fold) for fold in range(self.folds)]

        def shift(fit: Tensor, ridge: float | Tensor) -> Tensor:
            return match_mass(queries[..., fit, :], keys, mass[..., fit, :], ridge)

        def miss_mass(fold: int, ridge: float) -> Tensor:
            fit, check = parts[fold]
            own = (queries[..., check, :] @ shift(fit, ridge).mT).logsumexp(dim=-1, keepdim=True)
            return own - mass[..., check, :]

        def miss_output(fold: int, ridge: float) -> Tensor:
            fit, check = parts[fold]
            fitted = match_outputs(queries[..., fit, :], shifted[fold], values, outputs[..., fit, :], ridge)
            weights = (queries[..., check, :] @ shifted[fold].mT).softmax(dim=-1)
            return weights @ fitted - outputs[..., check, :]

        ridge = self._choose(MASS_RIDGES, miss_mass)
        shifted = [shift(fit, ridge) for fit, _ in parts]
        keys = match_mass(queries, keys, mass, ridge)
        values = match_outputs(queries, keys, values, outputs, self._choose(VALUE_RIDGES, miss_output))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def _choose(self, ridges: Sequence[float], miss: Callable[[int, float], Tensor]) -> Tensor:
        """The ridge of each branch and KV head, ``[branches, kv_heads, 1]``."""
        errors = [sum(miss(fold, ridge).square().sum(dim=(-2, -1)) for fold in range(self.folds)) for ridge in ridges]
        return torch.tensor(ridges, device=errors[0].device)[torch.stack(errors).argmin(dim=0)][..., None]


def split_heads(tokens: ScoreInput) -> list[ScoreInput]:
    """The same tokens, each KV head by itself."""
    names, heads = ("keys", "values", "queries", "ages"), tokens.keys.shape[-2]
    parts = zip(*(getattr(tokens, name).chunk(heads, dim=-2) for name in names), strict=True)
    return [replace(tokens, **dict(zip(names, part, strict=True))) for part in parts]


def share_rows(weights: Sequence[float], total: int, least: int, most: Sequence[int]) -> list[int]:
    """Divide ``total`` rows among heads in proportion to weights, ``least`` to ``most`` each: D'Hondt's method."""
    nth = torch.arange(1, max(most) + 1)
    quotients = torch.tensor(weights, dtype=torch.float64)[:, None] / nth
    quotients[:, :least] = torch.inf
    quotients[nth > torch.tensor(most)[:, None]] = -1
    given = quotients.flatten().topk(total).indices // len(nth)
    return given.bincount(minlength=len(weights)).tolist()
