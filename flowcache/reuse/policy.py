"""The interface of a reuse policy, and the distance that the adaptive policies measure."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..registry import check_options, option
from ..state import State
from .forecast import Forecast


@dataclass(frozen=True)
class Decision:
    """A policy's decision for one live chunk at one step."""

    reuse: bool  # skip the model and forecast
    distance: float | None = None  # change of the chunk's indicator since the previous step; None if not measured
    accumulated: float | None = None  # value compared with the threshold; None if nothing was compared


COMPUTE = Decision(reuse=False)


class ReusePolicy(ABC):
    """Decides, step by step, which live chunks skip the model.

    A policy is a dataclass whose fields are its options (``registry.option`` gives them limits); its state
    is made in ``begin``. ``decide`` is called once a step and must be cheap: at most one transfer from device
    to host, no clone of a latent.
    """

    #: Whether ``decide`` reads the indicator; otherwise the model does not compute it.
    needs_indicator: ClassVar[bool] = False

    #: Whether ``decide`` looks at tensors, so that the processes of a video might decide differently.
    reads_tensors: ClassVar[bool] = True

    #: Whether all live chunks share one decision; one that cannot be forecast is then computed with the rest.
    joint: ClassVar[bool] = False

    #: Tensor that is watched, by a name that the model knows; None: the model's default. May be a field.
    indicator = None

    def __post_init__(self) -> None:
        if is_dataclass(self):
            check_options(self)

    def begin(self, num_chunk_steps: int, times: Sequence[float], forecast: Forecast) -> None:
        """Make the state for a new window.

        Args:
            num_chunk_steps: local steps of every chunk.
            times: starts of a chunk's steps and, last, its end, in the solver's own unit.
            forecast: what replaces the model when a chunk is reused.
        """

    @abstractmethod
    def decide(
        self, step: int, num_steps: int, live: dict[int, int], indicators: dict[int, Tensor]
    ) -> dict[int, Decision]:
        """Decide for each live chunk.

        Args:
            step: global step of the loop.
            num_steps: global steps of the whole staircase.
            live: local step of each live chunk, oldest chunk first.
            indicators: tensor of each chunk whose relative change predicts that of the model's output. Empty
                unless ``needs_indicator``. With ``whole_window``, waiting and clean chunks are included.
        """

    def observe(self, chunk: int, local_step: int, velocity: Tensor) -> None:
        """Note a computed velocity, ``[channels, frames, height, width]``, before the forecast learns it."""

    def forget(self, chunk: int) -> None:
        """Drop the state of a chunk that has become clean."""

    def state_dict(self) -> State:
        """State between two steps; every policy with state returns it here."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Continue from the state of another policy with the same options; called after ``begin``."""

    def reads_fresh(self, clean_pass: bool) -> bool:
        """Whether no chunk ever reads what an earlier call left of a live one, so that layers may share memory.

        This holds where a chunk is computed only together with all older live ones, and always at its last step;
        ``clean_pass``: chunks run once more after that. Override it together with ``decide``.
        """
        return False

    def describe(self, num_chunk_steps: int | None = None) -> dict[str, Any]:
        """Options by name, for traces; those derived from a chunk's number of steps are filled in."""
        return asdict(self) if is_dataclass(self) else {}


@dataclass
class NoReuse(ReusePolicy):
    """Compute every live chunk at every step."""

    reads_tensors = False

    def decide(self, step, num_steps, live, indicators):
        return dict.fromkeys(live, COMPUTE)

    def reads_fresh(self, clean_pass):
        return True


def relative_l1(current: Sequence[Tensor], previous: Sequence[Tensor]) -> list[float]:
    """Relative L1 distance ``mean|a - b| / mean|b|`` of each pair, in one transfer to the host.

    The denominator is at least 1e-8, so an all-zero previous indicator gives a large, finite distance
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
    return reduce(lambda result, coefficient: result * value + coefficient, coefficients, 0.0)


@dataclass
class DistancePolicy(ReusePolicy):
    """Reuse while the accumulated relative-L1 distance of an indicator stays below a threshold.

    Args:
        threshold: accumulated distance at which the model runs; 0 never reuses.
        warmup_steps: steps at the start that are always computed.
        final_steps: steps at the end that are always computed.
        coefficients: polynomial over the distance, highest power first (as TeaCache fits it); None takes the distance
            itself.
        indicator: tensor that is watched; None: the model's default.
    """

    threshold: float = option(0.15, 0, 1000)
    warmup_steps: int = option(5, 1, 1000)
    final_steps: int = option(1, 0, 1000)
    coefficients: tuple[float, ...] | None = option(None, -1e12, 1e12)
    indicator: str | None = None

    needs_indicator = True

    def accumulate(self, accumulated: float, distance: float) -> Decision:
        accumulated += distance if self.coefficients is None else polynomial(self.coefficients, distance)
        # A fitted polynomial may be negative, so threshold 0 is checked explicitly.
        return Decision(self.threshold > 0 and accumulated < self.threshold, distance, accumulated)
