"""The interface of a reuse policy, and the distance that the adaptive ones measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..state import State
from .forecast import Forecast


@dataclass(frozen=True)
class Decision:
    """What a policy decided for one live chunk at one step.

    Attributes:
        reuse: True to skip the model and forecast instead.
        distance: relative change of the chunk's indicator since the previous step; None if not measured.
        accumulated: what was compared with the threshold; None if nothing was compared.
    """

    reuse: bool
    distance: float | None = None
    accumulated: float | None = None


COMPUTE = Decision(reuse=False)


class ReusePolicy(ABC):
    """Decides, step by step, which live chunks may skip the model.

    A policy keeps its state per chunk. It is asked once a step and must answer at almost no cost: at most
    one transfer from device to host, and no clone of a latent.
    """

    #: Whether ``decide`` reads the indicator; a policy that does not spares the model from computing it.
    needs_indicator: bool = False

    #: Whether all live chunks share one decision; then one that cannot be forecast is computed with the rest.
    joint: bool = False

    #: Whether the forecast is to be compared with every evaluation of the model.
    needs_errors: bool = False

    def begin(self, times: Sequence[float], forecast: Forecast) -> None:
        """Forget everything: a new window or a new video begins.

        Args:
            times: of the starts of a chunk's steps and, last, of its end, in the solver's own unit.
            forecast: what stands in for the model when a chunk is reused.
        """

    @abstractmethod
    def decide(
        self, step: int, num_steps: int, live: dict[int, int], indicators: dict[int, Tensor]
    ) -> dict[int, Decision]:
        """Decide for each live chunk.

        Args:
            step: global step of the loop.
            num_steps: global steps of the whole staircase.
            live: live chunks mapped to their local steps, oldest first.
            indicators: tensor whose relative change tells how much the chunk's evaluation would change.
                Empty unless ``needs_indicator``. Policies that judge the whole window get the chunks that
                are not live as well.
        """

    def forget(self, chunk: int) -> None:
        """Drop the state of a chunk that has become clean."""

    def state_dict(self) -> State:
        """What a policy remembers from step to step; a policy that remembers anything says so here."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Go on as another policy of the same settings; ``begin`` comes before."""


class NoReuse(ReusePolicy):
    """Compute every live chunk at every step."""

    def decide(self, step, num_steps, live, indicators):
        return dict.fromkeys(live, COMPUTE)


def computed_together(decisions: dict[int, Decision], live: dict[int, int]) -> dict[int, Decision]:
    """Compute every live chunk at a step at which one of them starts or has come to its bound.

    A chunk that is computed alone sees neighbours with the keys and values of an older step, which errs more
    than what is saved. Steps that a chunk computes in any case, but for its first, call for no others.
    """
    # What was compared with a bound and is not reused has come to it; the rest is computed in any case.
    called = any(live[c] == 0 or (not d.reuse and d.accumulated is not None) for c, d in decisions.items())
    return {c: replace(d, reuse=False) for c, d in decisions.items()} if called else decisions


def relative_l1(current: Sequence[Tensor], previous: Sequence[Tensor]) -> list[float]:
    """Relative L1 distance ``mean|a - b| / mean|b|`` of each pair, in one transfer to the host.

    The denominator is floored at 1e-8, so an all-zero previous indicator gives a large, finite distance
    (FlowCache, section 3.2).
    """
    if not current:
        return []
    distances = [
        (now - before).abs().mean() / before.abs().mean().clamp_min(1e-8)
        for now, before in zip(current, previous, strict=True)
    ]
    return torch.stack(distances).tolist()


def polynomial(coefficients: Sequence[float], value: float) -> float:
    """Evaluate a polynomial, highest power first (Horner's rule)."""
    result = 0.0
    for coefficient in coefficients:
        result = result * value + coefficient
    return result
