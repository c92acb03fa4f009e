"""Encoded clips of moving shapes, the data of the transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from moving_shapes import draw_scene, render
from torch import Tensor


def held_out_captions() -> frozenset[str]:
    """Captions that training never shows."""
    return frozenset(json.loads(Path(__file__).with_name("held_out.json").read_text()))


class LatentPool:
    """Encoded clips with their captions; grows while training goes on, so that training starts at once.

    Args:
        encode: video ``[1, 3, frames, height, width]`` in [-1, 1] to normalised latents.
        held_out: captions that must not be shown.
        frames: pixel frames of a clip.
        limit: clips to hold at most.
        seed: of the scenes.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        held_out: frozenset[str],
        frames: int,
        limit: int,
        seed: int,
    ) -> None:
        self._encode, self._held_out, self._frames, self._limit = encode, held_out, frames, limit
        self._rng = np.random.default_rng(seed)
        self._latents: list[Tensor] = []
        self._captions: list[str] = []

    def __len__(self) -> int:
        return len(self._latents)

    @torch.no_grad()
    def grow(self) -> None:
        """Render and encode one more clip, unless the limit is reached."""
        if len(self) >= self._limit:
            return
        scene = draw_scene(self._rng, self._held_out)
        video = render(scene, self._frames, start=int(self._rng.integers(200)))
        self._latents.append(self._encode(video.unsqueeze(0))[0])
        self._captions.append(scene.caption)

    def draw(self, rng: np.random.Generator, clips: int, frames: int) -> tuple[Tensor, list[str]]:
        """Random clips, ``[clips, channels, frames, h, w]``, and their captions."""
        picks = rng.integers(len(self), size=clips)
        return torch.stack([self._latents[i][:, :frames] for i in picks]), [self._captions[i] for i in picks]
