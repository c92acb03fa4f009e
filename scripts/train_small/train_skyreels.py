"""Train the small SkyReels-V2 transformer and its text encoder on moving shapes."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from latent_pool import LatentPool, held_out_captions
from noise_levels import draw_levels, is_trained_on
from skyreels_transformer import WindowTransformer
from text import build_text_encoder, build_tokenizer, embed_captions
from torch import Tensor
from trainer import main
from wan_vae import encode, use_planes

WINDOW = 25  # latent frames of the longest clip
SHORT = 5  # of those that are cheap, and so many, that they teach what things look like


class SkyReelsTask:
    """Velocity of latents with a noise level for every frame; half with full, half with causal attention."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        vae = AutoencoderKLWan.from_pretrained(args.vae).eval().to(args.device)
        use_planes(vae)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean, std = (
            torch.tensor(values).view(shape).to(args.device)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

        def encode_normalised(video: Tensor) -> Tensor:
            return (encode(vae, patchify(video.to(args.device), vae.config.patch_size)) - mean) / std

        self._long, self._short = (
            LatentPool(encode_normalised, held_out_captions(), 4 * frames - 3, limit, args.seed + frames)
            for frames, limit in ((WINDOW, args.clips), (SHORT, 4 * args.clips))
        )
        self._tokenizer = build_tokenizer()
        self._model = WindowTransformer(vae.config.z_dim).to(args.device)
        self._encoder = build_text_encoder(len(self._tokenizer)).to(args.device)
        self.modules = {"transformer": self._model.core, "text_encoder": self._encoder}
        self.blocks = self._model.core.blocks

    def grow(self) -> None:
        self._long.grow()
        for _ in range(4):
            self._short.grow()

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        device = self._args.device
        causal = bool(rng.random() < 0.5)
        # first what things look like, then how they move
        short = bool(rng.random() < 0.8 - 0.5 * done)
        longest = SHORT if short else WINDOW
        frames = longest if rng.random() < 0.7 else int(rng.integers(1, longest))
        clips = round(self._args.batch * WINDOW / longest)
        latents, captions = (self._short if short else self._long).draw(rng, clips, frames)
        captions = [caption if rng.random() > 0.1 else "" for caption in captions]
        levels = torch.stack([draw_levels(rng, frames, causal) for _ in captions]).to(device)
        text = embed_captions(self._tokenizer, self._encoder, captions)
        noise, sigma = torch.randn_like(latents), levels[:, None, :, None, None]
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            velocity = self._model((1 - sigma) * latents + sigma * noise, levels, text, causal)
        errors = (velocity.float() - (noise - latents)).square().mean(dim=(1, 3, 4))
        counted = is_trained_on(levels).float()
        return (errors * counted).sum() / counted.sum().clamp_min(1)


if __name__ == "__main__":
    main(SkyReelsTask, __doc__)
