"""Video to latents and back, through the Wan VAE."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from flowcache.finite import check_finite
from flowcache.state import State


class VideoCodec:
    """Encodes and decodes one video with ``AutoencoderKLWan``; latents are normalised per channel.

    Args:
        vae: the autoencoder; its configuration holds the latents' mean and deviation.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
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
        device, dtype = self.vae.device, self.vae.dtype
        latents = self.vae.encode(video.unsqueeze(0).to(device, dtype)).latent_dist.mode().float()
        latents = ((latents - self._mean.to(device)) / self._std.to(device))[0]
        return check_finite("latents of the given frames", latents)

    def decode(self, latents: Tensor) -> Tensor:
        """Video ``[3, frames, height, width]`` in [-1, 1] of normalised latents."""
        return VideoDecoder(self).decode(latents)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Latents ``[1, channels, frames, height, width]`` as the VAE knows them, of normalised ones."""
        device = self.vae.device
        latents = latents.unsqueeze(0).to(device) * self._std.to(device) + self._mean.to(device)
        return latents.to(self.vae.dtype)


class VideoDecoder:
    """Decodes one video piece by piece, in order of time; the pieces are those of the whole, without a seam.

    The VAE is causal in time: a frame needs the last features of those before it, at every convolution. They
    are kept here, and are all that is kept.

    Args:
        codec: whose VAE decodes.

    Raises:
        ValueError: the VAE is to cut frames into tiles, whose features it keeps to itself.
    """

    def __init__(self, codec: VideoCodec) -> None:
        vae = codec.vae
        if vae.use_tiling:
            raise ValueError("vae cannot decode tiles chunk by chunk; call disable_tiling on it.")
        self._codec = codec
        count = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        self._features: list[Tensor | None] = [None] * count
        self._begun = False

    def decode(self, latents: Tensor) -> Tensor:
        """The next frames, ``[3, frames, height, width]`` in [-1, 1], of normalised latents.

        The first latent frame of a video gives one frame, each further one four.
        """
        vae, frames = self._codec.vae, []
        for latent in vae.post_quant_conv(self._codec.denormalise(latents)).split(1, dim=2):
            first = not self._begun
            frames.append(vae.decoder(latent, self._features, [0], first_chunk=first))
            self._begun = True
        video = torch.cat(frames, dim=2)
        if vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=vae.config.patch_size)
        return check_finite("frames from the VAE", video[0].float()).clamp(-1, 1)

    def state_dict(self) -> State:
        """The last features, and whether there are any."""
        return {"features": list(self._features), "begun": self._begun}

    def load_state_dict(self, state: State) -> None:
        """Go on as another decoder with the same VAE."""
        self._features, self._begun = list(state["features"]), state["begun"]
