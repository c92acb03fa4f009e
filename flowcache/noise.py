"""Noise of a window: held whole, drawn block by block, or drawn as the original models do."""

from typing import Any, Literal

import torch
from torch import Tensor

from .state import State

#: Where start noise is drawn: ``portable`` on the host, the same numbers on every device; ``original`` on the device.
NoiseOrigin = Literal["portable", "original"]


class Noise:
    """Noise of a window, asked for in order of time; here a tensor, ``[channels, frames, height, width]``."""

    def __init__(self, noise: Tensor) -> None:
        self._noise = noise
        self.shape = noise.shape

    def frames(self, start: int, stop: int) -> Tensor:
        """Noise of frames ``[start, stop)``, a tensor of the caller's own."""
        return self._noise[:, start:stop].clone()

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        """Continue from a state of the same noise."""


class BlockNoise(Noise):
    """Noise drawn block by block, so that a long video holds at most two blocks.

    A block is one call of ``torch.randn``. A window of at most one block therefore gets the numbers of one
    draw for the whole window; a longer one gets others.

    Nothing else may draw from the ``generator``, on the host, before the window's end.
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
        if start < self._start:
            raise ValueError(f"noise: expected frames from {self._start} on, got {start}, which is dropped.")
        channels, num_frames, *size = self.shape
        while self._stop < stop:
            count = min(self._block_frames, num_frames - self._stop)
            self._blocks.append(torch.randn((channels, count, *size), generator=self._generator))
            self._stop += count
            while self._blocks and self._start + self._blocks[0].shape[1] <= start:
                self._start += self._blocks.pop(0).shape[1]
        own = torch.cat(self._blocks, dim=1)[:, start - self._start : stop - self._start]
        return own.to(self._device, copy=True)

    def state_dict(self) -> State:
        own = {"start": self._start, "stop": self._stop, "blocks": list(self._blocks)}
        return own | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._start, self._stop = state["start"], state["stop"]
        self._blocks = [block.cpu() for block in state["blocks"]]
        self._generator.set_state(state["generator"].cpu())


class DeviceNoise(Noise):
    """Noise of a whole window in one draw on the device, as the original models draw it; frames are fp32.

    The state is the generator's before the draw, so resuming gives the same noise on the same kind of device only.

    Args:
        generator: of the device (``make_generator``); nothing else draws from it before the window's end.
        shape: of the window.
        device, dtype: of the draw.
        num_drawn: frames of the draw. Frames beyond the draw are given, those beyond the window are not used.
    """

    def __init__(
        self,
        generator: torch.Generator,
        shape: tuple[int, int, int, int],
        num_drawn: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self._generator = torch.Size(shape), generator
        self._drawn = (shape[0], num_drawn, *shape[2:])
        self._options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.load_state_dict({"generator": generator.get_state()})

    def frames(self, start: int, stop: int) -> Tensor:
        return super().frames(start, stop).float()

    def state_dict(self) -> State:
        return {"generator": self._before}

    def load_state_dict(self, state: State) -> None:
        self._before = state["generator"].cpu()
        self._generator.set_state(self._before)
        self._noise = torch.randn(self._drawn, generator=self._generator, **self._options)


def make_generator(origin: NoiseOrigin, seed: int, device: torch.device) -> torch.Generator:
    """Make a generator on the host, or on the device for ``original``; the meta device has none of its own."""
    on_device = origin == "original" and device.type != "meta"
    return torch.Generator(device if on_device else "cpu").manual_seed(seed)
