"""Train a small autoencoder on moving shapes: a Wan VAE for SkyReels-V2, or MAGI-1's."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    patchify,
    unpatchify,
)
from torch import Tensor, nn
from torch.nn import functional

from magi1.vae import AutoencoderKLMagi

from .moving_shapes import draw_scene, render
from .trainer import new_parser, train

#: 8 x 8 x 4 compression into 16 channels, as the official one; patches of 2 x 2 replace one level.
WAN_CONFIG = {
    "base_dim": 24,
    "decoder_base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
}
MAGI_CONFIG = {
    "video_size": 64,
    "video_length": 12,
    "embed_dim": 192,
    "depth": 3,
    "num_heads": 3,
    "use_final_proj": True,
}


class PlaneConv3d(WanCausalConv3d):
    """A causal 3D convolution run as a 2D one over frames stacked in channels: same result, faster on a CPU."""

    @classmethod
    def from_conv(cls, conv: WanCausalConv3d) -> PlaneConv3d:
        """Make the same convolution, sharing the parameters."""
        pads = conv._padding
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride)
        plane = cls(*sizes, padding=(pads[4] // 2, pads[2], pads[0]))
        plane.weight, plane.bias = conv.weight, conv.bias
        return plane

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Map ``x [b, c, t, h, w]`` and up to two earlier frames in ``cache_x`` to ``[b, out, t', h', w']``."""
        left, top, past = self._padding[0], self._padding[2], self._padding[4]
        span, stride = self.kernel_size[0], self.stride[0]
        if past:
            if cache_x is not None:
                x, past = torch.cat([cache_x, x], dim=2), past - cache_x.shape[2]
            x = functional.pad(x, (0, 0, 0, 0, past, 0))
        batch, count = x.shape[0], (x.shape[2] - span) // stride + 1
        frames = x.transpose(1, 2)
        last = stride * (count - 1) + 1
        stacked = torch.cat([frames[:, k : k + last : stride] for k in range(span)], dim=2).flatten(0, 1)
        weight = self.weight.transpose(1, 2).flatten(1, 2)
        stacked = stacked.contiguous(memory_format=torch.channels_last)
        out = functional.conv2d(stacked, weight, self.bias, self.stride[1:], (top, left))
        return out.unflatten(0, (batch, -1)).transpose(1, 2)


def use_planes(module: nn.Module) -> None:
    """Replace every causal 3D convolution below ``module``; the state dict does not change."""
    for name, child in module.named_children():
        if type(child) is WanCausalConv3d:
            setattr(module, name, PlaneConv3d.from_conv(child))
        else:
            use_planes(child)


@torch.no_grad()
def new_wan_vae() -> AutoencoderKLWan:
    """Make a VAE that passes its input on: unit gain, no bias, residual branches that output zero.

    With PyTorch's initialisation the decoder spends hundreds of steps learning to ignore its input.
    """
    vae, convolutions = AutoencoderKLWan(**WAN_CONFIG), (nn.Conv2d, nn.Conv3d)
    for module in vae.modules():
        if isinstance(module, convolutions):
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.weight)
            # a 3D kernel starts as a 2D one on the present frame
            present = module.weight[:, :, -1] if module.weight.ndim == 5 else module.weight
            present.normal_(0, 1 / math.sqrt(present[0].numel()))
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, WanAttentionBlock):
            nn.init.zeros_(module.proj.weight)
        elif isinstance(module, WanResample):
            for child in module.modules():
                if isinstance(child, convolutions):
                    nn.init.zeros_(child.weight)
    use_planes(vae)
    return vae


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Mean of the latents ``[b, z, t', h', w']``: the first frame, then all others at once."""
    video = patchify(video, vae.config.patch_size)
    vae.clear_cache()
    pieces = [piece for piece in (video[:, :, :1], video[:, :, 1:]) if piece.shape[2]]
    hidden = [vae.encoder(piece, feat_cache=vae._enc_feat_map, feat_idx=[0]) for piece in pieces]
    vae.clear_cache()
    return vae.quant_conv(torch.cat(hidden, dim=2)).chunk(2, dim=1)[0]


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Video ``[b, 3, t, h, w]``, not clamped: the library's clamp would stop the gradient."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    frames = [vae.decoder(hidden[:, :, :1], feat_cache=vae._feat_map, feat_idx=[0], first_chunk=True)]
    if hidden.shape[2] > 1:
        frames.append(vae.decoder(hidden[:, :, 1:], feat_cache=vae._feat_map, feat_idx=[0]))
    vae.clear_cache()
    return unpatchify(torch.cat(frames, dim=2), vae.config.patch_size)


class WanTask:
    """A round trip through noisy latents of a Wan VAE; single frames teach forms, long clips motion."""

    #: Clips, frames and size of a batch, all of similar cost, the shortest first.
    batches = (
        (16, 1, 32),
        (4, 1, 64),
        (6, 5, 32),
        (2, 5, 64),
        (3, 9, 32),
        (1, 9, 64),
        (1, 17, 48),
        (1, 33, 32),
    )
    longest = 9  # frames of the statistics' clips

    def __init__(self, noise: float) -> None:
        self.blocks = self.vae = self.new_vae()
        self.modules, self._noise = {"vae": self.vae}, noise

    def new_vae(self) -> nn.Module:
        return new_wan_vae()

    def encode(self, video: Tensor) -> Tensor:
        return encode(self.vae, video)

    def decode(self, latents: Tensor) -> Tensor:
        return decode(self.vae, latents)

    def grow(self) -> None:
        """Keep nothing: every batch is drawn anew."""

    def learning_rate(self, step: int, done: float) -> float:
        return min(1.0, (step + 1) / 20) * max(0.0, 1 - done) ** 2

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        count = len(self.batches)
        video = draw_batch(rng, *self.batches[rng.integers(-(-count // 2) if done < 0.1 else count)])
        latents = self.encode(video)
        spread = latents.detach().std()
        error = self.decode(latents + self._noise * spread * torch.randn_like(latents)) - video
        return error.abs().mean() + error.square().mean() + 1e-3 * (latents.square().mean() - 1).clamp_min(0)

    @torch.no_grad()
    def set_statistics(self, clips: int = 96) -> None:
        """Measure the latents' mean and spread, with which the pipelines normalise."""
        rng = np.random.default_rng(1)
        self.register(torch.cat([self.encode(draw_batch(rng, 1, self.longest, 64)) for _ in range(clips)]))

    def register(self, latents: Tensor) -> None:
        dims = (0, 2, 3, 4)
        mean, std = latents.mean(dims).tolist(), latents.std(dims).clamp_min(1e-3).tolist()
        self.vae.register_to_config(latents_mean=mean, latents_std=std)


class MagiTask(WanTask):
    """The same for MAGI-1's autoencoder, on tiles as it is run."""

    batches = ((8, 4, 64), (4, 8, 64), (3, 12, 64))
    longest = 12

    def new_vae(self) -> nn.Module:
        vae = AutoencoderKLMagi(**MAGI_CONFIG)
        for name, parameter in vae.named_parameters():
            if name.endswith(("pos_embed", "cls_token")):
                nn.init.normal_(parameter, std=0.02)
        return vae

    def encode(self, video: Tensor) -> Tensor:
        return self.vae.encode(video).latent_dist.mean

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)

    def register(self, latents: Tensor) -> None:
        self.vae.register_to_config(scaling_factor=1 / latents.std().item())


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


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, minutes=18, lr=0.012, ema=0.0)
    add = parser.add_argument
    add("--model", choices=["skyreels", "magi"], default="skyreels", help="default: skyreels")
    add("--start", type=Path, help="folder of a VAE to start from")
    add("--noise", type=float, default=0.2, help="noise on latents, share of their spread (default: 0.2)")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    task = (MagiTask if args.model == "magi" else WanTask)(args.noise)
    if args.start:
        task.vae.load_state_dict(type(task.vae).from_pretrained(args.start).state_dict())
        args.start = json.loads((args.start / "arguments.json").read_text())
    train(task, args)
    task.set_statistics()
    task.vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
