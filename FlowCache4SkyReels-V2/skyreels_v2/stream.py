"""How far the stream of a video has come: the window on its way, and what was decoded of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache import Denoiser
from flowcache.output import VideoPart
from flowcache.state import State, on_device

from .codec import VideoCodec, VideoDecoder
from .settings import pixel_frames


class WindowDecoder:
    """Decodes a window chunk by chunk; knows what of it is new, and what the next window takes over.

    Args:
        codec: decodes.
        repeated: latent frames at the start that the window before has shown.
        num_kept: newest frames to keep for the next window; None: there is none.
    """

    def __init__(self, codec: VideoCodec, repeated: int, num_kept: int | None) -> None:
        self._decoder, self._repeated, self._num_kept = VideoDecoder(codec), repeated, num_kept
        self._start = 0
        #: ``[3, frames, height, width]``, as far as there are any yet
        self.newest: Tensor | None = None

    def decode(self, latents: Tensor) -> VideoPart | None:
        """What is new of the next chunk, ``[channels, frames, height, width]``; None: nothing."""
        frames = self._decoder.decode(latents)
        if self._num_kept is not None:
            known = frames if self.newest is None else torch.cat([self.newest, frames], dim=1)
            self.newest = known[:, -self._num_kept :].clone()
        start, stop = self._start, self._start + latents.shape[1]
        self._start = stop
        shown_from = max(start, self._repeated)
        if shown_from >= stop:
            return None
        new = frames[:, pixel_frames(shown_from) - pixel_frames(start) :]
        return VideoPart(new, latents[:, shown_from - start :].clone())

    def state_dict(self) -> State:
        """Frames decoded so far, the newest of them, and what the VAE remembers."""
        return {"start": self._start, "newest": self.newest, "decoder": self._decoder.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on as another decoder of the same window."""
        self._start, self.newest = state["start"], state["newest"]
        self._decoder.load_state_dict(state["decoder"])


@dataclass
class StreamPosition:
    """Where a stream stands.

    Attributes:
        denoiser: of all windows.
        condition_generator: of the noise on given frames.
        window: index of the window on its way.
        given: its given latents, at its start and at its end; None: there are none.
        decoder: of that window.
    """

    denoiser: Denoiser
    condition_generator: torch.Generator
    window: int = 0
    given: tuple[Tensor | None, Tensor | None] = (None, None)
    decoder: WindowDecoder | None = None

    def state_dict(self) -> State:
        """What is needed to go on behind the last chunk."""
        return {
            "window": self.window,
            "given": self.given,
            "decoder": self.decoder.state_dict(),
            "denoiser": self.denoiser.state_dict(),
            "condition_generator": self.condition_generator.get_state(),
        }

    def load_state_dict(self, state: State, device: torch.device | str) -> None:
        """Go on in the window that ``state`` was taken in, whose decoder is here, on ``device``."""
        self.given = on_device(state["given"], device)
        self.decoder.load_state_dict(on_device(state["decoder"], device))
        self.denoiser.load_state_dict(state["denoiser"])
        self.condition_generator.set_state(state["condition_generator"])
