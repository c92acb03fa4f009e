"""What only the original FlowCache does when it compresses: for the paper's presets and reference cases."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..registry import check_options, option

Weighting = Literal["no_weight", "hard_code", "exponential", "polynomial", "upper_convex_polynomial", "gaussian"]
Trigger = Literal["clean", "full", "step"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)


@dataclass(frozen=True, kw_only=True)
class OriginalCompression:
    """How the original compresses.

    Args:
        trigger: compress when a chunk becomes ``clean``, as we do; between two steps, when the next chunk finds the
            cache ``full`` (MAGI-1); or within a ``step``, in each layer before a chunk reads (SkyReels-V2).
        weighting: weight of a token's score by its place, see ``weight_by_place`` (MAGI-1).
        power: exponent of the polynomial weightings.
        best_first: order kept tokens by score, unless the scorer needs that of time. False: by time.
    """

    trigger: Trigger = "clean"
    weighting: Weighting = "no_weight"
    power: float = option(1.0, 0.001, 1000)
    best_first: bool = True

    def __post_init__(self) -> None:
        check_options(self)


def weight_by_place(scores: Tensor, weighting: str, power: float, tokens_per_chunk: int) -> Tensor:
    """Scores ``[..., tokens]``, oldest token first, weighted by place.

    ``hard_code`` gives the first chunk up. The others multiply scores of at least 0 by a curve over the place
    ``x`` from 0 to 1: ``gaussian`` favours the beginning, the rest the end.
    """
    if weighting == "no_weight":
        return scores
    if weighting == "hard_code":
        given_up = torch.arange(scores.shape[-1], device=scores.device) < tokens_per_chunk
        return scores - 1e6 * given_up
    x = torch.linspace(0, 1, scores.shape[-1], device=scores.device)
    if weighting == "upper_convex_polynomial":
        return scores * 2 * (1 - (1 - x) ** power)
    if weighting == "exponential":
        curve = 1 - torch.exp(-2 * x)
    elif weighting == "polynomial":
        curve = x**power
    else:
        curve = torch.exp(-0.5 * (x * (len(x) - 1) / (len(x) / 4)) ** 2)
    low, high = curve.amin(), curve.amax()
    return scores * (0.1 + 0.9 * (curve - low) / (high - low).clamp_min(1e-12))
