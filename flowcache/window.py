"""The latents of one window, cut along time into chunks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise
from .state import State


@dataclass(frozen=True)
class ChunkSpan:
    """Latent frames ``[start, start + frames)`` of a window; the first ``held`` of them are given."""

    start: int
    frames: int
    held: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.frames


class Window:
    """Chunks of a window in the order in which they enter the cache, and the latents of those in use.

    A chunk's noise becomes latents when it is first asked for, and the loop drops chunks that no later step
    reads; so memory is that of the live chunks, for a window of any length.

    Args:
        chunks: given chunks first, then those to denoise in order of time.
        given: given latents at the start of each chunk that has any, ``[channels, n, height, width]``.
        num_given: chunks whose frames are all given.
        num_prefix: given frames at the start of the window.
    """

    def __init__(
        self, noise: Noise, chunks: list[ChunkSpan], given: dict[int, Tensor], num_given: int = 0, num_prefix: int = 0
    ) -> None:
        self.chunks, self.num_given, self.num_prefix = chunks, num_given, num_prefix
        self._noise, self._given = noise, given
        #: Frames of the longest chunk.
        self.longest = max(span.frames for span in chunks)
        self._latents: dict[int, Tensor] = {}

    @property
    def frame_shape(self) -> torch.Size:
        """``[channels, height, width]``."""
        return torch.Size((self._noise.shape[0], *self._noise.shape[2:]))

    @property
    def held(self) -> list[int]:
        """Chunks whose latents were asked for or given, and not dropped."""
        return [*self._latents, *(self._given.keys() - self._latents.keys())]

    def count_given(self, chunk: int) -> int:
        span = self.chunks[chunk]
        return span.frames if chunk < self.num_given else span.held

    def count_prefix(self, chunk: int) -> int:
        """Frames of the prefix at the start of a chunk; 0 in the chunk to arrive at."""
        span = self.chunks[chunk]
        return min(span.frames, max(0, self.num_prefix - span.start))

    def latents(self, chunk: int) -> Tensor:
        """Latents of a chunk, ``[channels, frames, height, width]``; the loop advances them in place."""
        if chunk not in self._latents:
            given, span = self._given.get(chunk), self.chunks[chunk]
            if chunk < self.num_given:
                latents = given.clone()
            else:
                latents = self._noise.frames(span.start, span.stop)
                if given is not None:
                    latents[:, : span.held] = given
            self._latents[chunk] = latents
        return self._latents[chunk]

    def noised_latents(self, chunk: int, level: float, noise: Tensor | None) -> Tensor:
        """Latents of a chunk with noise mixed into the frames of the prefix, ``(1 - level) x + level n``.

        A little noise keeps long videos from drifting (SkyReels-V2, ``addnoise_condition``). The frame to
        arrive at stays clean, as in the original. ``noise``: ``[channels, num_prefix, height, width]``.
        """
        latents, count, start = self.latents(chunk), self.count_prefix(chunk), self.chunks[chunk].start
        if noise is None or not count:
            return latents
        mixed = (1 - level) * latents[:, :count] + level * noise[:, start : start + count]
        return torch.cat([mixed, latents[:, count:]], dim=1)

    def drop(self, chunk: int) -> None:
        """Release a chunk's latents; it must not be asked for again."""
        self._latents.pop(chunk, None)
        self._given.pop(chunk, None)

    def state_dict(self) -> State:
        own = {"latents": dict(self._latents), "given": list(self._given)}
        return own | {"noise": self._noise.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from the state of a window with the same chunks, given latents and noise."""
        self._latents = dict(state["latents"])
        self._given = {chunk: self._given[chunk] for chunk in state["given"]}
        self._noise.load_state_dict(state["noise"])


def cut_window(
    noise: Tensor | Noise,
    chunk_frames: int,
    prefix: Tensor | None = None,
    last: Tensor | None = None,
    first_frames: int | None = None,
) -> Window:
    """Cut a window into chunks of ``chunk_frames`` latent frames; the last chunk may be shorter.

    Args:
        noise: ``[channels, frames, height, width]``, or a source that draws it in pieces.
        prefix: given latents that replace the first frames, ``[channels, n, height, width]``. Whole chunks
            of it are given; the rest is held inside the first chunk that is denoised.
        last: a given latent frame ``[channels, 1, height, width]`` that replaces the last frame. It becomes a
            chunk of its own that enters the cache first, so that every other chunk sees where to arrive.
        first_frames: latent frames of the first chunk; None: as many as the others have.
    """
    noise = Noise(noise) if isinstance(noise, Tensor) else noise
    num_prefix = 0 if prefix is None else prefix.shape[1]
    end = noise.shape[1] - (last is not None)
    if num_prefix >= end:
        raise ValueError(f"prefix: expected fewer than {end} latent frames, got {num_prefix}.")
    chunks, given = [], {}
    if last is not None:
        given[0] = last
        chunks.append(ChunkSpan(end, 1))
    first_frames = first_frames or chunk_frames
    for start in (0, *range(first_frames, end, chunk_frames)):
        frames = min(chunk_frames if start else first_frames, end - start)
        held = min(frames, max(0, num_prefix - start))
        if held:
            given[len(chunks)] = prefix[:, start : start + held].clone()
        chunks.append(ChunkSpan(start, frames, held if held < frames else 0))
    num_given = sum(span.stop <= num_prefix for span in chunks) + (last is not None)
    return Window(noise, chunks, given, num_given, num_prefix)
