"""What replaces the model's output when a chunk is reused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..chunk_model import ChunkInput, ChunkModel, Solver
from ..state import State

#: Longest extrapolation, in distances between the last two evaluations. Clamped because lines diverge over
#: long gaps.
REACH = 3.0

#: Share of the slope that ``CorrectedVelocity`` extrapolates, as velocities also change from step to step without a
#: trend.
SLOPE = 0.8


class Forecast:
    """Forecasts a chunk from its last evaluations.

    Order 0 holds the last evaluation; 1 extrapolates along the line through the last two, at their true, uneven
    times. A chunk with one evaluation holds it.
    """

    #: A forecast is a velocity that the solver integrates over the step's true time difference; False: a
    #: displacement that replaces the solver's step.
    gives_velocity: bool = True
    slope: float = 1.0  # share of the line's slope that is extrapolated
    runs_edges: bool = False  # whether a forecast runs the model's embedding and head (never its layers)

    def __init__(self, order: int = 0) -> None:
        self.order = order
        self.begin(())

    def begin(self, times: Sequence[float]) -> None:
        """Forget everything for a new window; ``times`` as in ``ReusePolicy.begin``."""
        self.times = times
        self._known: dict[int, list[tuple[float, Tensor]]] = {}

    def knows(self, chunk: int) -> bool:
        return chunk in self._known

    def evaluated_at(self, chunk: int) -> list[float]:
        """Times of the evaluations that a chunk is forecast from, oldest first."""
        return [time for time, _ in self._known.get(chunk, ())]

    def forget(self, chunk: int) -> None:
        self._known.pop(chunk, None)

    def state_dict(self) -> State:
        return {"known": {chunk: list(known) for chunk, known in self._known.items()}}

    def load_state_dict(self, state: State) -> None:
        """Continue from the state of another forecast of the same kind; called after ``begin``."""
        self._known = {chunk: list(known) for chunk, known in state["known"].items()}

    def observe_evaluation(
        self,
        inputs: Sequence[ChunkInput],
        tokens: Sequence[Tensor],
        outputs: Sequence[Tensor],
        velocities: Sequence[Tensor],
    ) -> None:
        """Note an evaluation: computed chunks, and what ``ChunkModel`` returned for each."""

    def correct(self, chunk: int, local_step: int, latents: Tensor, solver: Solver) -> Tensor:
        """Correct the latents that a chunk was just evaluated at, before the solver's step from them."""
        return latents

    def observe_step(self, chunk: int, local_step: int, before: Tensor, after: Tensor, reused: bool) -> None:
        """Note a step of a chunk, ``[channels, frames, height, width]``."""

    def predict(self, model: ChunkModel, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        """Forecast chunks: velocities or displacements, ``[channels, frames, height, width]``."""
        return [self.extrapolate(item.chunk, item.local_step) for item in inputs]

    def extrapolate(self, chunk: int, local_step: int) -> Tensor:
        known = self._known[chunk]
        if len(known) == 1:
            return known[0][1]
        (before, earlier), (last, later) = known
        reach = REACH * abs(last - before)
        weight = self.slope * max(-reach, min(reach, self.times[local_step] - last)) / (last - before)
        return (1 + weight) * later - weight * earlier

    def _learn(self, chunk: int, local_step: int, value: Tensor) -> None:
        known, time = self._known.setdefault(chunk, []), self.times[local_step]
        if known and known[-1][0] == time:  # a waiting chunk is evaluated at its start more than once
            known.pop()
        known.append((time, value))
        del known[: -self.order - 1]


class ResidualForecast(Forecast):
    """Forecasts the block stack's residual; embedding and head run with the current latent and time.

    Order 0 is the original FlowCache's forecast on SkyReels-V2, and TeaCache's.
    """

    runs_edges = True

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, before, after in zip(inputs, tokens, outputs, strict=True):
            self._learn(item.chunk, item.local_step, after - before)

    def predict(self, model, inputs):
        residuals = super().predict(model, inputs)
        return model.head(inputs, [x + r for x, r in zip(model.embed(inputs), residuals, strict=True)])


class VelocityForecast(Forecast):
    """Forecasts the guided velocity; the solver integrates it over the step's own time difference."""

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, velocity in zip(inputs, velocities, strict=True):
            self._learn(item.chunk, item.local_step, velocity)


class DisplacementForecast(Forecast):
    """Adds the last computed step's displacement again, whatever the step's time difference.

    The original FlowCache's forecast on MAGI-1 (the paper's equation for reuse).
    """

    gives_velocity = False

    def observe_step(self, chunk, local_step, before, after, reused):
        if not reused:
            self._learn(chunk, local_step, after - before)


@dataclass
class _Gap:
    """A chunk at its last evaluation, and how far its steps since then have moved it."""

    local_step: int
    latents: Tensor
    history: State | None  # of the solver
    moved: Tensor | float = 0.0


class CorrectedVelocity(VelocityForecast):
    """Forecasts along a line, and corrects the skipped steps at the next evaluation.

    A line between two evaluations is several times closer than one beyond them. So the solver takes the steps since
    the last evaluation once more, with velocities interpolated to the new one, as a predictor-corrector method does
    (PEC); the model does not run again. It keeps four to six latents per chunk.
    """

    slope = SLOPE

    def __init__(self) -> None:
        super().__init__(order=1)

    def begin(self, times):
        super().begin(times)
        self._gaps: dict[int, _Gap] = {}

    def forget(self, chunk):
        super().forget(chunk)
        self._gaps.pop(chunk, None)

    def correct(self, chunk, local_step, latents, solver):
        gap = self._gaps.get(chunk)
        if gap is not None and gap.local_step < local_step - 1:
            (first, earlier), (last, later) = self._known[chunk]
            solver.restore(chunk, gap.history)
            corrected = gap.latents
            for step in range(gap.local_step, local_step):
                velocity = earlier.lerp(later, (self.times[step] - first) / (last - first))
                corrected = solver.step(chunk, step, corrected, velocity)
            latents = latents + (corrected - gap.latents - gap.moved)  # keeps what a callback changed
        self._gaps[chunk] = _Gap(local_step, latents.clone(), solver.history(chunk))
        return latents

    def observe_step(self, chunk, local_step, before, after, reused):
        if chunk in self._gaps:  # not where it was only evaluated while it waited
            self._gaps[chunk].moved = self._gaps[chunk].moved + (after - before)

    def state_dict(self):
        return super().state_dict() | {"gaps": {chunk: dict(vars(gap)) for chunk, gap in self._gaps.items()}}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._gaps = {chunk: _Gap(**gap) for chunk, gap in state["gaps"].items()}


FORECASTS: dict[str, Callable[[], Forecast]] = {
    "hold_residual": ResidualForecast,
    "linear_residual": partial(ResidualForecast, 1),
    "hold_displacement": DisplacementForecast,
    "hold_velocity": VelocityForecast,
    "linear_velocity": partial(VelocityForecast, 1),
    "corrected_velocity": CorrectedVelocity,
}
