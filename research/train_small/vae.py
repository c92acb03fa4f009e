"""Train a small autoencoder on moving shapes: a Wan VAE for SkyReels-V2, or MAGI-1's."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanResample,
    WanResidualBlock,
    unpatchify,
)
from torch import Tensor, nn

from magi1.vae import AutoencoderKLMagi

from .moving_shapes import ASSETS, draw_scene, render
from .trainer import Task, new_parser, train


class WanTask(Task):
    """A round trip through noisy latents of a Wan VAE; single frames teach forms, long clips motion."""

    #: Clips, frames and size of a batch, all of similar cost, the shortest first.
    batches = (*((16, 1, 32), (4, 1, 64), (6, 5, 32), (2, 5, 64)), *((3, 9, 32), (1, 9, 64), (1, 17, 48), (1, 33, 32)))
    longest = 9  # frames of the clips that statistics are measured on

    def __init__(self, args: argparse.Namespace) -> None:
        self.blocks = self.vae = self.new_vae()
        self.modules, self._noise = {"vae": self.vae}, args.noise

    @torch.no_grad()
    def new_vae(self) -> nn.Module:
        """Make a VAE that passes its input on: unit gain, no bias, residual branches that output zero.

        With PyTorch's initialisation the decoder spends hundreds of steps learning to ignore its input.
        """
        vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(ASSETS / "skyreels_v2_small/vae"))
        silent = set()
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                silent.add(module.conv2)
            elif isinstance(module, WanAttentionBlock):
                silent.add(module.proj)
            elif isinstance(module, WanResample):
                silent.update(module.modules())
        for module in vae.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.zeros_(module.bias)
                nn.init.zeros_(module.weight)
                # a 3D kernel starts as a 2D one on the present frame
                present = module.weight[:, :, -1] if module.weight.ndim == 5 else module.weight
                present.normal_(0, 1 / math.sqrt(present[0].numel()) * (module not in silent))
        return vae

    def decode(self, latents: Tensor) -> Tensor:
        """Video ``[b, 3, t, h, w]``, not clamped: the library's clamp would stop the gradient."""
        vae = self.vae
        vae.clear_cache()
        first, *others = vae.post_quant_conv(latents).split(1, dim=2)
        cache = {"feat_cache": vae._feat_map}
        frames = [vae.decoder(first, feat_idx=[0], first_chunk=True, **cache)]
        frames += [vae.decoder(frame, feat_idx=[0], **cache) for frame in others]
        vae.clear_cache()
        return unpatchify(torch.cat(frames, dim=2), vae.config.patch_size)

    def learning_rate(self, step: int, done: float) -> float:
        return min(1.0, (step + 1) / 20) * max(0.0, 1 - done) ** 2

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        count = len(self.batches)
        video = draw_batch(rng, *self.batches[rng.integers(-(-count // 2) if done < 0.1 else count)])
        latents = self.vae.encode(video).latent_dist.mean
        spread = latents.detach().std()
        error = self.decode(latents + self._noise * spread * torch.randn_like(latents)) - video
        size = (latents.square().mean() - 1).clamp_min(0)
        return error.abs().mean() + error.square().mean() + 1e-3 * size

    @torch.no_grad()
    def finish(self, out: Path) -> None:
        """Measure the latents' statistics, with which the pipelines normalise, and save the VAE."""
        rng = np.random.default_rng(1)
        clips = (draw_batch(rng, 1, self.longest, 64) for _ in range(96))
        latents = torch.cat([self.vae.encode(clip).latent_dist.mean for clip in clips])
        self.vae.register_to_config(**self.describe(latents))
        self.vae.save_pretrained(out)

    def describe(self, latents: Tensor) -> dict[str, object]:
        dims = (0, 2, 3, 4)
        std = latents.std(dims).clamp_min(1e-3)
        return {"latents_mean": latents.mean(dims).tolist(), "latents_std": std.tolist()}


class MagiTask(WanTask):
    """The same for MAGI-1's autoencoder, on tiles as it is run."""

    batches, longest = ((8, 4, 64), (4, 8, 64), (3, 12, 64)), 12

    def new_vae(self) -> nn.Module:
        vae = AutoencoderKLMagi.from_config(AutoencoderKLMagi.load_config(ASSETS / "magi1_small/vae"))
        for name, parameter in vae.named_parameters():
            if name.endswith(("pos_embed", "cls_token")):
                nn.init.normal_(parameter, std=0.02)
        return vae

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)

    def describe(self, latents: Tensor) -> dict[str, object]:
        return {"scaling_factor": 1 / latents.std().item()}


def draw_batch(rng: np.random.Generator, clips: int, frames: int, size: int) -> Tensor:
    """Draw clips ``[clips, 3, frames, size, size]``, cropped from 64 x 64 where they are smaller."""
    videos = []
    for _ in range(clips):
        video = render(draw_scene(rng), frames, start=int(rng.integers(300)))
        if rng.random() < 0.1:  # a still picture, as a first frame is
            video = video[:, :1].expand_as(video)
        top, left = (8 * rng.integers((64 - size) // 8 + 1, size=2)).tolist()
        videos.append(video[:, :, top : top + size, left : left + size])
    return torch.stack(videos)


if __name__ == "__main__":
    parser = new_parser(__doc__, minutes=18, lr=0.012, ema=0.0, first_clips=0)
    add = parser.add_argument
    add("--model", choices=["skyreels", "magi"], default="skyreels", help="of the autoencoder")
    add("--noise", type=float, default=0.2, help="noise on latents, share of their spread")
    args = parser.parse_args()
    train(MagiTask if args.model == "magi" else WanTask, args)
