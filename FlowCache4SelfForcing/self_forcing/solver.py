"""The few-step solver: predict the clean latents, then add fresh noise for the next time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowcache.chunk_model import Solver
from flowcache.state import State

#: Times of the model's clock between noise and clean latents.
NUM_TIMES = 1000


def noise_table(shift: float) -> Tensor:
    """Noise levels of the times that the models were trained at, noisiest first, fp32."""
    unshifted = torch.linspace(1, 0, NUM_TIMES + 1)[:-1]
    return shift * unshifted / (1 + (shift - 1) * unshifted)


def step_times(steps: Sequence[int], shift: float, warp: bool) -> list[float]:
    """Times of a list of steps; ``warp``: the list is of the unshifted clock, in thousandths."""
    times = [*(1000 * noise_table(shift)).tolist(), 0.0]
    return [times[NUM_TIMES - step] if warp else float(step) for step in steps]


class FewStepSolver(Solver):
    """Steps of distilled models (Self-Forcing, algorithm 2): ``x0 = x - sigma v``, then ``(1 - s) x0 + s n``.

    ``sigma`` and ``s`` are the noise levels of a step's time and of the next one, by the nearest entry of
    ``noise_table``; ``n`` is fresh noise. The last step ends at ``x0``.

    Args:
        times: of the model's clock at each step.
        shift: of the noise table.
        generator, dtype: of the fresh noise, which is drawn in the order of the loop.
        first_times: in place of ``times`` for ``first_chunk``, the first one that is denoised. Other chunks skip
            the first local steps (``StaircaseSchedule.skipped``).
    """

    def __init__(
        self,
        times: Sequence[float],
        shift: float,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
        first_times: Sequence[float] | None = None,
        first_chunk: int = 0,
    ) -> None:
        first_times = first_times or times
        self.skipped = len(first_times) - len(times)
        if self.skipped < 0:
            raise ValueError(f"first_times: expected at least {len(times)} steps, got {len(first_times)}.")
        self._first_chunk, self._generator, self._dtype = first_chunk, generator, dtype
        # By local step; other chunks never read what they skip.
        self._first, self._others = list(first_times), [*first_times[: self.skipped], *times]
        table = noise_table(shift)
        self._levels = {t: table[(1000 * table - t).abs().argmin()].item() for t in {*first_times, *times}}
        self.times = [*(time / 1000 for time in self._others), 0.0]

    def timestep(self, local_step: int, chunk: int = 0) -> float:
        return self._steps(chunk)[local_step]

    def step(self, chunk: int, local_step: int, latents: Tensor, velocity: Tensor) -> Tensor:
        steps = self._steps(chunk)
        # In fp64 as in the original, whose result has the type of the velocity.
        clean = latents.double() - self._levels[steps[local_step]] * velocity.double()
        clean = clean.type_as(velocity)
        if local_step == len(steps) - 1:
            return clean
        level = self._levels[steps[local_step + 1]]
        channels, frames, *size = clean.shape
        noise = self.draw((frames, channels, *size)).transpose(0, 1)
        return (1 - level) * clean + level * noise.to(clean)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Fresh noise, ``[frames, channels, height, width]`` as in the original."""
        generator = self._generator
        return torch.randn(shape, generator=generator, device=generator.device, dtype=self._dtype)

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"].cpu())

    def _steps(self, chunk: int) -> list[float]:
        return self._first if chunk == self._first_chunk else self._others
