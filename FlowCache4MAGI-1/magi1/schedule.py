"""Times of MAGI-1's steps."""

from itertools import pairwise

import numpy as np
from torch import Tensor

from flowcache.chunk_model import Solver

#: Time at which the official models see clean chunks.
CLEAN_TIME = 0.9999
#: Shift of the grid of times towards noise.
SHIFT = 3.0

#: Steps of each four of the 16-step grid that a run of 12 steps makes.
SHORTCUTS = {"8,16,16": (0, 2, 3), "16,16,8": (0, 1, 2)}


class Timetable(Solver):
    """Euler's method on times from 0 (noise) to 1 (clean): squared, then shifted by 3 as Stable Diffusion 3 does.

    Args:
        num_steps: a multiple of 4; the official models make 8, 16, 32 or 64, or 12, which are those of 16
            without every fourth.
        shortcut: one of ``SHORTCUTS``: the step of each four that a run of 12 steps leaves out.
        distilled: whether the model sees its step size.
        clean_time: time at which clean and given chunks run.
    """

    def __init__(
        self, num_steps: int, shortcut: str = "8,16,16", distilled: bool = False, clean_time: float = CLEAN_TIME
    ) -> None:
        if num_steps < 4 or num_steps % 4:
            raise ValueError(f"num_steps: expected a multiple of 4, got {num_steps}.")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut_mode: expected one of {', '.join(SHORTCUTS)}, got {shortcut!r}.")
        self.num_steps, self.distilled, self.clean_time = num_steps, distilled, clean_time
        offsets = SHORTCUTS[shortcut]
        self._intervals = [after - before for before, after in pairwise((*offsets, 4))]
        if num_steps == 12:
            places = [4 * quarter + offset for quarter in range(4) for offset in offsets]
            uniform = np.array([*places, 16], np.float32) / np.float32(16)
        else:
            uniform = np.linspace(0, 1, num_steps + 1, dtype=np.float32)
        squared = uniform * uniform
        times = squared / np.float32(SHIFT) / (1 - np.float32(1 - 1 / SHIFT) * squared)
        self.times, self._lengths = times.tolist(), np.diff(times).tolist()

    def timestep(self, local_step: int, chunk: int = 0) -> float:
        return self.times[local_step]

    def step(self, chunk: int, local_step: int, latents: Tensor, velocity: Tensor) -> Tensor:
        return latents + velocity * self._lengths[local_step]

    def step_size(self, local_step: int) -> float | None:
        """Step size that a distilled model sees, in quarters of the grid; None for others."""
        if not self.distilled:
            return None
        if self.num_steps != 12:
            return 2 * self.num_steps / 4
        return 2 * 4 / self._intervals[local_step % 3]
