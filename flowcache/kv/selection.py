"""From scores to the tokens that are kept."""

from __future__ import annotations

import torch
from torch import Tensor

#: How a score is weighted by a token's place among those that may be dropped, oldest first.
WEIGHTINGS = ("no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian")


def weight_by_place(scores: Tensor, weighting: str, power: float, tokens_per_chunk: int) -> Tensor:
    """Scores ``[kv_heads, tokens]`` weighted as the original FlowCache does on MAGI-1.

    All but ``no_weight`` and ``hard_code`` multiply by a curve over the place ``x`` from 0 to 1, and expect
    scores of at least 0.

    Args:
        scores: higher is kept.
        weighting: one of ``WEIGHTINGS``. ``hard_code`` gives the first chunk up; ``gaussian`` favours the
            beginning, the others the end.
        power: of the polynomials.
        tokens_per_chunk: for ``hard_code``.

    Raises:
        ValueError: unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"score_weighting_method must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
    if weighting == "no_weight":
        return scores
    if weighting == "hard_code":
        given_up = torch.arange(scores.shape[1], device=scores.device) < tokens_per_chunk
        return scores - 1e6 * given_up
    x = torch.linspace(0, 1, scores.shape[1], device=scores.device)
    if weighting == "upper_convex_polynomial":
        return scores * 2 * (1 - (1 - x) ** power)
    curves = {
        "exponential": lambda: 1 - torch.exp(-2 * x),
        "polynomial": lambda: x**power,
        "gaussian": lambda: torch.exp(-0.5 * (x * (len(x) - 1) / (len(x) / 4)) ** 2),
    }
    curve = curves[weighting]()
    low, high = curve.amin(), curve.amax()
    return scores * (0.1 + 0.9 * (curve - low) / (high - low).clamp_min(1e-12))


def select(scores: Tensor, budget: int, group: int = 1) -> Tensor:
    """Indices of the best tokens of each head, ``[kv_heads, kept]``, best first.

    Args:
        scores: ``[kv_heads, tokens]``, higher is kept.
        budget: tokens to keep; with groups, as many whole groups as fit.
        group: consecutive tokens that stay or go together, by their mean: those of a frame or a chunk.

    Raises:
        ValueError: no group fits into the budget.
    """
    if group == 1:
        return scores.topk(min(budget, scores.shape[1]), dim=1).indices
    count = min(budget, scores.shape[1]) // group
    if count < 1:
        raise ValueError(f"budget must hold at least one group of {group} tokens, got {budget}.")
    means = group_means(scores, group)
    best = means.topk(count, dim=1).indices
    return (best.unsqueeze(2) * group + torch.arange(group, device=scores.device)).flatten(1)


def group_means(scores: Tensor, group: int) -> Tensor:
    """Mean scores of whole groups of consecutive tokens, ``[kv_heads, groups]``; a rest is left out."""
    count = scores.shape[1] // group
    return scores[:, : count * group].unflatten(1, (count, group)).mean(dim=2)
