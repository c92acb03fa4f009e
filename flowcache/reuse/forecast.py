"""What stands in for the model when a chunk is reused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ..chunk_model import ChunkInput, ChunkModel


class Forecast(ABC):
    """Remembers what the last evaluation of each chunk gave, and forecasts from it.

    ``gives_velocity`` tells what a forecast is: a velocity that the solver integrates with the step's true
    time difference, or a displacement that replaces the solver's step altogether.
    """

    gives_velocity: bool = True

    #: Whether a forecast runs the model's embedding and head (never its layers).
    runs_edges: bool = False

    def __init__(self) -> None:
        self._held: dict[int, Tensor] = {}

    def knows(self, chunk: int) -> bool:
        """Whether there is something to forecast this chunk from."""
        return chunk in self._held

    def forget(self, chunk: int) -> None:
        """Drop what is held for a chunk that has become clean."""
        self._held.pop(chunk, None)

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

    def observe_step(self, chunk: int, before: Tensor, after: Tensor) -> None:
        """Take note of the solver's step of a computed chunk, ``[channels, frames, height, width]``."""

    @abstractmethod
    def predict(self, model: ChunkModel, inputs: Sequence[ChunkInput]) -> list[Tensor]:
        """Forecast the given chunks: velocities or displacements, ``[channels, frames, height, width]``."""


class HoldResidual(Forecast):
    """Keep the block stack's residual; embedding and head run anew, with the current latent and time.

    What the original FlowCache does on SkyReels-V2, and TeaCache everywhere.
    """

    runs_edges = True

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, before, after in zip(inputs, tokens, outputs, strict=True):
            self._held[item.chunk] = after - before

    def predict(self, model, inputs):
        tokens = model.embed(inputs)
        outputs = [
            item_tokens + self._held[item.chunk] for item, item_tokens in zip(inputs, tokens, strict=True)
        ]
        return model.head(inputs, outputs)


class HoldVelocity(Forecast):
    """Keep the guided velocity; the solver integrates it with the step's own time difference."""

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, velocity in zip(inputs, velocities, strict=True):
            self._held[item.chunk] = velocity

    def predict(self, model, inputs):
        return [self._held[item.chunk] for item in inputs]


class HoldDisplacement(Forecast):
    """Add the last computed step's displacement again, whatever the time difference is now.

    What the original FlowCache does on MAGI-1 (the paper's equation for reuse).
    """

    gives_velocity = False

    def observe_step(self, chunk, before, after):
        self._held[chunk] = after - before

    def predict(self, model, inputs):
        return [self._held[item.chunk] for item in inputs]


FORECASTS: dict[str, type[Forecast]] = {
    "hold_residual": HoldResidual,
    "hold_displacement": HoldDisplacement,
    "hold_velocity": HoldVelocity,
}
