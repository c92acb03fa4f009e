"""Video to latents and back, through the Wan VAE."""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor

from flowcache.finite import check_finite
from flowcache.state import State

from .settings import pixel_frames


class VideoCodec:
    """Encodes videos, and decodes one window piece by piece, in order of time, without a seam.

    Latents are normalised per channel. The VAE is causal in time: a frame needs the last features of those
    before it, at every convolution. Only these are kept, and the newest frames.

    Args:
        vae: the autoencoder.
        repeated: latent frames at the start that the window before has shown; ``decode_new`` omits them.
        num_kept: newest frames to keep in ``newest`` for the next window.
    """

    def __init__(self, vae: AutoencoderKLWan, repeated: int = 0, num_kept: int = 0) -> None:
        if vae.use_tiling:  # it keeps the features of tiles to itself
            raise ValueError("vae cannot decode tiles chunk by chunk; call disable_tiling on it.")
        self.vae, self._repeated, self._num_kept = vae, repeated, num_kept
        count = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        self._features: list[Tensor | None] = [None] * count
        self._start = 0  # latent frames decoded so far
        #: ``[3, frames, height, width]``; None before the first piece, and without ``num_kept``
        self.newest: Tensor | None = None

    def encode(self, video: Tensor) -> Tensor:
        """Encode ``[3, frames, height, width]`` in [-1, 1] to latents in fp32."""
        given = video.unsqueeze(0).to(self.vae.device, self.vae.dtype)
        mean, std = self._statistics()
        latents = (self.vae.encode(given).latent_dist.mode().float() - mean) / std
        return check_finite("latents of the given frames", latents[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the next latents to ``[3, frames, height, width]`` in [-1, 1]."""
        vae, frames, (mean, std) = self.vae, [], self._statistics()
        latents = (latents.unsqueeze(0).to(vae.device) * std + mean).to(vae.dtype)
        for latent in vae.post_quant_conv(latents).split(1, dim=2):
            frames.append(vae.decoder(latent, self._features, [0], first_chunk=self._start == 0))
            self._start += 1
        video = torch.cat(frames, dim=2)
        if vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=vae.config.patch_size)
        video = check_finite("frames from the VAE", video[0].float()).clamp(-1, 1)
        if self._num_kept:
            known = video if self.newest is None else torch.cat([self.newest, video], dim=1)
            self.newest = known[:, -self._num_kept :].clone()
        return video

    def decode_new(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Decode the next latents; frames and latents of those not repeated, None if all are."""
        start = self._start
        frames, shown = self.decode(latents), max(start, self._repeated)
        if shown >= self._start:
            return None
        return frames[:, pixel_frames(shown) - pixel_frames(start) :], latents[:, shown - start :].clone()

    def state_dict(self) -> State:
        return {"start": self._start, "newest": self.newest, "features": list(self._features)}

    def load_state_dict(self, state: State) -> None:
        """Continue where another codec of the same window stood."""
        self._start, self.newest = state["start"], state["newest"]
        self._features = list(state["features"])

    def _statistics(self) -> tuple[Tensor, Tensor]:
        config, device = self.vae.config, self.vae.device
        mean, std = (torch.tensor(x, device=device) for x in (config.latents_mean, config.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
