"""Train the small Wan VAE on moving shapes."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from moving_shapes import draw_scene, render
from muon import Muon, split_parameters
from plane_conv import decode, encode, init_unit_gain, use_planes
from torch import Tensor, nn
from tqdm import tqdm

from flowcache.files import write_atomically

logger = logging.getLogger("train_vae")

PATCH = 2
CONFIG = {
    "base_dim": 24,
    "decoder_base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": PATCH,
    "in_channels": 3 * PATCH**2,
    "out_channels": 3 * PATCH**2,
    "scale_factor_spatial": 8,
}

#: Clips, frames and size of a batch, all of about one cost: single frames teach forms, long clips motion.
BATCHES = ((16, 1, 32), (4, 1, 64), (6, 5, 32), (2, 5, 64), (3, 9, 32), (1, 9, 64), (1, 17, 48), (1, 33, 32))


def build_vae() -> AutoencoderKLWan:
    """A Wan VAE with 8 x 8 x 4 compression, initialised to pass its input on."""
    vae = AutoencoderKLWan(**CONFIG)
    init_unit_gain(vae)
    for module in vae.modules():
        if isinstance(module, wan.WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, wan.WanAttentionBlock):
            nn.init.zeros_(module.proj.weight)
        elif isinstance(module, wan.WanResample):
            for child in module.modules():
                if isinstance(child, (nn.Conv2d, nn.Conv3d)):
                    nn.init.zeros_(child.weight)
    return vae


def draw_batch(rng: np.random.Generator, clips: int, frames: int, size: int) -> Tensor:
    """Clips ``[clips, 3, frames, size, size]``, cut from videos of 64 x 64 where they are smaller."""
    videos = []
    for _ in range(clips):
        video = render(draw_scene(rng), frames, start=int(rng.integers(300)))
        top, left = (8 * rng.integers((64 - size) // 8 + 1, size=2)).tolist()
        videos.append(video[:, :, top : top + size, left : left + size])
    return torch.stack(videos)


def training_loss(vae: AutoencoderKLWan, video: Tensor, noise: float) -> tuple[Tensor, float]:
    """Loss of a round trip through noisy latents, and its PSNR in dB."""
    patches = wan.patchify(video, PATCH)
    latents = encode(vae, patches)
    spread = latents.detach().std()
    decoded = decode(vae, latents + noise * spread * torch.randn_like(latents))
    error = decoded - patches
    loss = error.abs().mean() + error.square().mean() + 1e-3 * (latents.square().mean() - 1).clamp_min(0)
    mse = (decoded.detach().clamp(-1, 1) - patches).square().mean().item() / 4
    return loss, -10 * math.log10(mse)


def learning_rate(step: int, done: float) -> float:
    """Share of the peak: a short warm-up, then a fall to nothing, first fast."""
    return min(1.0, (step + 1) / 20) * max(0.0, 1 - done) ** 2


def train(args: argparse.Namespace) -> AutoencoderKLWan:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    vae = build_vae()
    use_planes(vae)
    matrices, rest = split_parameters(vae)
    optimizers = [Muon(matrices, lr=args.lr), torch.optim.AdamW(rest, lr=0.1 * args.lr, betas=(0.9, 0.99))]
    peaks = [args.lr, 0.1 * args.lr]
    logger.info("%.2fM parameters", sum(p.numel() for p in vae.parameters()) / 1e6)
    start, step, ratios = time.monotonic(), 0, {batch: [] for batch in BATCHES}
    with tqdm(total=args.minutes, unit="min", mininterval=10) as bar:
        while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
            # short clips first
            batch = BATCHES[rng.integers(4 if done < 0.1 else len(BATCHES))]
            loss, ratio = training_loss(vae, draw_batch(rng, *batch), args.noise)
            vae.zero_grad()
            loss.backward()
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * learning_rate(step, done)
                optimizer.step()
            step += 1
            ratios[batch].append(ratio)
            if step % 100 == 0:
                means = {f"{f}x{s}": f"{np.mean(r[-20:]):.1f}" for (_, f, s), r in ratios.items() if r}
                logger.info("step %d, %.0f%%, PSNR %s", step, 100 * done, means)
            bar.update(args.minutes * done - bar.n)
    return vae


@torch.no_grad()
def set_statistics(vae: AutoencoderKLWan, clips: int = 96) -> None:
    """Measure mean and spread of each latent channel, which the pipeline normalises with."""
    rng = np.random.default_rng(1)
    latents = torch.cat([encode(vae, wan.patchify(draw_batch(rng, 1, 17, 64), PATCH)) for _ in range(clips)])
    dims = (0, 2, 3, 4)
    vae.register_to_config(
        latents_mean=latents.mean(dims).tolist(), latents_std=latents.std(dims).clamp_min(1e-3).tolist()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--minutes", type=float, default=20, help="wall time to train for")
    parser.add_argument("--lr", type=float, default=0.012)
    parser.add_argument("--noise", type=float, default=0.06, help="noise on latents, share of their spread")
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parser.parse_args()
    vae = train(args)
    set_statistics(vae)
    vae.save_pretrained(args.out)
    write_atomically(args.out / "arguments.json", json.dumps(vars(args), default=str).encode())
    logger.info("wrote %s", args.out)


if __name__ == "__main__":
    main()
