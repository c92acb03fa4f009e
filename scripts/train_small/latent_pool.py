"""Encoded clips of moving shapes, the data of the transformer."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from moving_shapes import draw_scene, render
from plane_conv import encode, use_planes
from torch import Tensor


class LatentPool:
    """Encoded clips with their captions; grows while training goes on, so that training starts at once.

    Args:
        vae: encodes; its convolutions are exchanged for equal ones.
        held_out: captions that must not be shown.
        frames: pixel frames of a clip.
        limit: clips to hold at most.
        seed: of the scenes.
    """

    def __init__(
        self, vae: AutoencoderKLWan, held_out: frozenset[str], frames: int, limit: int, seed: int
    ) -> None:
        self._vae, self._held_out, self._frames, self._limit = vae, held_out, frames, limit
        use_planes(vae)
        self._rng = np.random.default_rng(seed)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape).to(vae.device)
        self._std = torch.tensor(vae.config.latents_std).view(shape).to(vae.device)
        self._latents: list[Tensor] = []
        self._captions: list[str] = []

    def __len__(self) -> int:
        return len(self._latents)

    @torch.no_grad()
    def grow(self, clips: int) -> None:
        """Render and encode more clips, up to the limit."""
        clips = min(clips, self._limit - len(self))
        if clips <= 0:
            return
        scenes = [draw_scene(self._rng, self._held_out) for _ in range(clips)]
        video = torch.stack([render(s, self._frames, start=int(self._rng.integers(200))) for s in scenes])
        latents = encode(self._vae, patchify(video.to(self._vae.device), self._vae.config.patch_size))
        self._latents.extend(((latents - self._mean) / self._std).unbind())
        self._captions.extend(scene.caption for scene in scenes)

    def draw(self, rng: np.random.Generator, clips: int, frames: int) -> tuple[Tensor, list[str]]:
        """Random clips, ``[clips, channels, frames, h, w]``, and their captions."""
        picks = rng.integers(len(self), size=clips)
        return torch.stack([self._latents[i][:, :frames] for i in picks]), [self._captions[i] for i in picks]
