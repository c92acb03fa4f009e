"""The latents of one window, cut along time into chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkSpan:
    """Latent frames ``[start, start + frames)`` of a window; the first ``held`` of them are given."""

    start: int
    frames: int
    held: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.frames


@dataclass
class Window:
    """Latents of a window and its chunks in the order in which they enter the cache.

    Attributes:
        latents: ``[channels, frames, height, width]``, fp32: noise, with the given frames filled in. The loop
            advances them in place.
        chunks: given chunks first, then those to denoise in order of time.
        num_given: chunks whose frames are all given.
    """

    latents: Tensor
    chunks: list[ChunkSpan]
    num_given: int = 0

    @property
    def given_frames(self) -> list[int]:
        """Indices of the given frames, in order of time."""
        given = [f for span in self.chunks[: self.num_given] for f in range(span.start, span.stop)]
        held = [
            f for span in self.chunks[self.num_given :] for f in range(span.start, span.start + span.held)
        ]
        return sorted(given + held)

    def view(self, chunk: int) -> Tensor:
        """Latents of a chunk, a view."""
        span = self.chunks[chunk]
        return self.latents[:, span.start : span.stop]


def cut_window(
    latents: Tensor, chunk_frames: int, prefix: Tensor | None = None, last: Tensor | None = None
) -> Window:
    """Cut a window into chunks of ``chunk_frames`` latent frames; the last one takes what is left.

    Args:
        latents: noise, ``[channels, frames, height, width]``; copied.
        chunk_frames: latent frames of a chunk.
        prefix: given latents that replace the first frames, ``[channels, n, height, width]``. Whole chunks
            of it are given; a rest is held inside the first chunk that is denoised, so that no given frame
            is thrown away.
        last: a given latent frame ``[channels, 1, height, width]`` that replaces the last frame. It becomes a
            chunk of its own that enters the cache first, so that every other chunk sees where to arrive.

    Raises:
        ValueError: nothing is left to denoise.
    """
    latents = latents.clone()
    num_frames = latents.shape[1]
    num_prefix = 0 if prefix is None else prefix.shape[1]
    end = num_frames if last is None else num_frames - 1
    if num_prefix >= end:
        raise ValueError(f"The prefix of {num_prefix} latent frames leaves nothing to denoise of {end}.")
    chunks = []
    if last is not None:
        latents[:, end:] = last
        chunks.append(ChunkSpan(end, 1))
    if prefix is not None:
        latents[:, :num_prefix] = prefix
    for start in range(0, end, chunk_frames):
        held = max(0, num_prefix - start)
        frames = min(chunk_frames, end - start)
        chunks.append(ChunkSpan(start, frames, held if held < frames else 0))
    return Window(latents, chunks, num_given=num_prefix // chunk_frames + (last is not None))


def with_condition_noise(window: Window, level: float, noise: Tensor) -> Tensor:
    """The window's latents with noise mixed into the given frames, ``(1 - level) x + level n``.

    A little noise on the condition keeps long videos from drifting (SkyReels-V2, ``addnoise_condition``).

    Args:
        level: between 0 and 1.
        noise: ``[channels, given frames, height, width]``, the frames in order of time.

    Returns:
        ``[channels, frames, height, width]``; the window itself is left as it is.
    """
    frames = torch.tensor(window.given_frames, device=window.latents.device)
    given = window.latents[:, frames]
    return window.latents.index_copy(1, frames, (1 - level) * given + level * noise)
