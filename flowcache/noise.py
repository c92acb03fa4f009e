"""Where a window's noise comes from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .state import State


class Noise(Protocol):
    """Noise of a window, asked for in order of time."""

    #: ``[channels, frames, height, width]`` of the whole window
    shape: torch.Size

    def frames(self, start: int, stop: int) -> Tensor:
        """Noise of frames ``[start, stop)``, a tensor of the caller's own."""
        ...

    def state_dict(self) -> State:
        """What of it cannot be made anew."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go on as the source that ``state_dict`` was called on."""
        ...


class HeldNoise:
    """Noise that is there already.

    Args:
        noise: ``[channels, frames, height, width]``.
    """

    def __init__(self, noise: Tensor) -> None:
        self._noise = noise
        self.shape = noise.shape

    def frames(self, start: int, stop: int) -> Tensor:
        return self._noise[:, start:stop].clone()

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing is to be done: all of it is there."""


class BlockNoise:
    """Noise drawn block by block as frames are asked for, so that a long video holds two blocks at most.

    A block is one call of ``torch.randn``. A window of no more than one block therefore gets the numbers that
    drawing it whole would give; a longer one gets others.

    Args:
        generator: on the host; nothing else may draw from it before the window's end.
        shape: of the window, ``[channels, frames, height, width]``.
        block_frames: latent frames of a block.
        device: where the noise is wanted.
    """

    def __init__(
        self,
        generator: torch.Generator,
        shape: tuple[int, int, int, int],
        block_frames: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = torch.Size(shape)
        self._generator, self._block_frames, self._device = generator, block_frames, device
        self._start = self._stop = 0
        self._blocks: list[Tensor] = []

    def frames(self, start: int, stop: int) -> Tensor:
        """Noise of frames ``[start, stop)``.

        Raises:
            ValueError: a block that holds some of them is gone, because later frames were asked for before.
        """
        if start < self._start:
            raise ValueError(f"Noise of frames before {self._start} is gone; {start} was asked for.")
        while self._stop < stop:
            self._draw()
            self._drop_before(start)
        return torch.cat(self._blocks, dim=1)[:, start - self._start : stop - self._start].to(
            self._device, copy=True
        )

    def state_dict(self) -> State:
        """Blocks that are still in use, and the generator's state."""
        return {
            "start": self._start,
            "stop": self._stop,
            "blocks": list(self._blocks),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on from there; the generator, too."""
        self._start, self._stop = state["start"], state["stop"]
        self._blocks = [block.cpu() for block in state["blocks"]]
        self._generator.set_state(state["generator"].cpu())

    def _draw(self) -> None:
        channels, frames, *size = self.shape
        count = min(self._block_frames, frames - self._stop)
        self._blocks.append(torch.randn((channels, count, *size), generator=self._generator))
        self._stop += count

    def _drop_before(self, frame: int) -> None:
        while self._blocks and self._start + self._blocks[0].shape[1] <= frame:
            self._start += self._blocks.pop(0).shape[1]
