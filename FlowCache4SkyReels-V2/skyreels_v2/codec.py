"""Video to latents and back, through the Wan VAE."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor


class VideoCodec:
    """Encodes and decodes one video with ``AutoencoderKLWan``; latents are normalised per channel.

    Args:
        vae: the autoencoder; its configuration holds the latents' mean and deviation.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self._vae = vae
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised latents of a video.

        Args:
            video: ``[3, frames, height, width]`` in [-1, 1].

        Returns:
            ``[channels, (frames - 1) / 4 + 1, height / 8, width / 8]``, fp32.
        """
        device, dtype = self._vae.device, self._vae.dtype
        latents = self._vae.encode(video.unsqueeze(0).to(device, dtype)).latent_dist.mode().float()
        return ((latents - self._mean.to(device)) / self._std.to(device))[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Video ``[3, frames, height, width]`` in [-1, 1] of normalised latents."""
        device, dtype = self._vae.device, self._vae.dtype
        latents = latents.unsqueeze(0).to(device) * self._std.to(device) + self._mean.to(device)
        return self._vae.decode(latents.to(dtype), return_dict=False)[0][0].float().clamp(-1, 1)
