"""What stands in for the model when a chunk is reused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from torch import Tensor

from ..chunk_model import ChunkInput, ChunkModel
from ..state import State

#: How far a forecast is carried on, in units of the distance between the last two evaluations. Beyond that it
#: stays where it is, lest a polynomial run away in a long gap.
REACH = 3.0


@dataclass(frozen=True)
class ForecastError:
    """How wrong a forecast would have been, found out when the model ran.

    Attributes:
        value: relative root mean square error, a scalar tensor.
        spread: of the times; see ``Forecast.spread``.
    """

    value: Tensor
    spread: float


class Forecast(ABC):
    """Remembers the last evaluations of each chunk, and forecasts the next from them.

    The polynomial through the last ``order + 1`` evaluations, at their true and uneven times, is carried on
    to the time that is asked for. Order 0 holds the last one; a chunk with fewer evaluations makes do with
    those. ``gives_velocity`` tells what a forecast is: a velocity that the solver integrates with the step's
    true time difference, or a displacement that replaces the solver's step altogether.

    Args:
        order: of the polynomial.
    """

    gives_velocity: bool = True

    #: Whether a forecast runs the model's embedding and head (never its layers).
    runs_edges: bool = False

    def __init__(self, order: int = 0) -> None:
        self.order = order
        self.begin(())

    def begin(self, times: Sequence[float], with_errors: bool = False) -> None:
        """Forget everything: a new window begins.

        Args:
            times: of the starts of a chunk's steps and, last, of its end, in the solver's own unit.
            with_errors: compare every evaluation with what would have been forecast; see ``pop_errors``.
        """
        self._times, self._with_errors = times, with_errors
        self._known: dict[int, list[tuple[float, Tensor]]] = {}
        self._errors: dict[int, ForecastError] = {}

    def knows(self, chunk: int) -> bool:
        """Whether there is something to forecast this chunk from."""
        return chunk in self._known

    def forget(self, chunk: int) -> None:
        """Drop what is held for a chunk that has become clean."""
        self._known.pop(chunk, None)
        self._errors.pop(chunk, None)

    def state_dict(self) -> State:
        """Evaluations that are remembered, and errors that were not asked for yet."""
        return {
            "known": {chunk: list(known) for chunk, known in self._known.items()},
            "errors": {chunk: (error.value, error.spread) for chunk, error in self._errors.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Go on as another forecast of the same kind; ``begin`` comes before."""
        self._known = {chunk: list(known) for chunk, known in state["known"].items()}
        self._errors = {chunk: ForecastError(*error) for chunk, error in state["errors"].items()}

    def spread(self, chunk: int, local_step: int) -> float | None:
        """Product of the time differences between a step and the evaluations that it is forecast from.

        The error of interpolation is this times a derivative of the order ``order + 1``, and so grows with
        it. None while the chunk has fewer evaluations than the order needs.
        """
        known = self._known.get(chunk, ())
        if len(known) <= self.order:
            return None
        return prod(abs(self._times[local_step] - time) for time, _ in known)

    def pop_errors(self) -> dict[int, ForecastError]:
        """Errors of the chunks that were computed since the last call."""
        errors, self._errors = self._errors, {}
        return errors

    def observe_evaluation(
        self,
        inputs: Sequence[ChunkInput],
        tokens: Sequence[Tensor],
        outputs: Sequence[Tensor],
        velocities: Sequence[Tensor],
    ) -> None:
        """Take note of an evaluation of the model.

        Args:
            inputs: the chunks that were computed.
            tokens: per chunk, what entered the block stack, ``[branches or 1, tokens, dim]``.
            outputs: per chunk, what left it, ``[branches, tokens, dim]``.
            velocities: per chunk, the guided velocity, ``[channels, frames, height, width]``.
        """

    def observe_step(self, chunk: int, local_step: int, before: Tensor, after: Tensor) -> None:
        """Take note of the solver's step of a computed chunk, ``[channels, frames, height, width]``."""

    @abstractmethod
    def predict(self, model: ChunkModel, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        """Forecast the given chunks: velocities or displacements, ``[channels, frames, height, width]``."""

    def _learn(self, chunk: int, local_step: int, value: Tensor) -> None:
        if self._with_errors and (spread := self.spread(chunk, local_step)) is not None:
            wrong = (self._carry_on(chunk, local_step) - value).square().mean()
            relative = (wrong / value.square().mean().clamp_min(1e-12)).sqrt()
            self._errors[chunk] = ForecastError(relative, spread)
        known = self._known.setdefault(chunk, [])
        known.append((self._times[local_step], value))
        del known[: -self.order - 1]

    def _carry_on(self, chunk: int, local_step: int) -> Tensor:
        known = self._known[chunk]
        if len(known) == 1:
            return known[0][1]
        times = [time for time, _ in known]
        weights = lagrange_weights(times, within_reach(times, self._times[local_step]))
        return sum(weight * value for weight, (_, value) in zip(weights, known, strict=True))


class ResidualForecast(Forecast):
    """Forecasts the block stack's residual; embedding and head run anew, with the current latent and time.

    Order 0 is what the original FlowCache does on SkyReels-V2, and TeaCache everywhere.
    """

    runs_edges = True

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, before, after in zip(inputs, tokens, outputs, strict=True):
            self._learn(item.chunk, item.local_step, after - before)

    def predict(self, model, inputs):
        tokens = model.embed(inputs)
        outputs = [
            item_tokens + self._carry_on(item.chunk, item.local_step)
            for item, item_tokens in zip(inputs, tokens, strict=True)
        ]
        return model.head(inputs, outputs)


class VelocityForecast(Forecast):
    """Forecasts the guided velocity; the solver integrates it with the step's own time difference."""

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, velocity in zip(inputs, velocities, strict=True):
            self._learn(item.chunk, item.local_step, velocity)

    def predict(self, model, inputs):
        return [self._carry_on(item.chunk, item.local_step) for item in inputs]


class DisplacementForecast(Forecast):
    """Adds the last computed step's displacement again, whatever the time difference is now.

    What the original FlowCache does on MAGI-1 (the paper's equation for reuse).
    """

    gives_velocity = False

    def observe_step(self, chunk, local_step, before, after):
        self._learn(chunk, local_step, after - before)

    def predict(self, model, inputs):
        return [self._carry_on(item.chunk, item.local_step) for item in inputs]


FORECASTS: dict[str, Callable[[], Forecast]] = {
    "hold_residual": ResidualForecast,
    "linear_residual": partial(ResidualForecast, 1),
    "quadratic_residual": partial(ResidualForecast, 2),
    "hold_displacement": DisplacementForecast,
    "hold_velocity": VelocityForecast,
    "linear_velocity": partial(VelocityForecast, 1),
    "quadratic_velocity": partial(VelocityForecast, 2),
}


def within_reach(times: Sequence[float], time: float) -> float:
    """The time to carry on to: ``REACH`` of the last distance away from the last of ``times`` at most."""
    longest = REACH * abs(times[-1] - times[-2])
    return times[-1] + max(-longest, min(longest, time - times[-1]))


def lagrange_weights(times: Sequence[float], time: float) -> list[float]:
    """Weights of values at ``times`` whose sum is their interpolating polynomial at ``time``."""
    return [
        prod((time - other) / (own - other) for j, other in enumerate(times) if j != i)
        for i, own in enumerate(times)
    ]
