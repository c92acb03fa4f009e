"""Train a small autoencoder on moving shapes: a Wan VAE for SkyReels-V2, or MAGI-1's."""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from moving_shapes import draw_scene, render
from muon import Muon, split_parameters
from torch import Tensor, nn
from tqdm import tqdm
from wan_vae import decode, encode, new_wan_vae, use_planes

from flowcache.files import write_atomically
from magi1.vae import AutoencoderKLMagi

logger = logging.getLogger("train_vae")

MAGI_CONFIG = {
    "video_size": 64,
    "video_length": 12,
    "embed_dim": 192,
    "depth": 3,
    "num_heads": 3,
    "use_final_proj": True,
}


@dataclass(frozen=True)
class Codec:
    """An autoencoder in training.

    Attributes:
        vae: what is trained and saved.
        encode: video ``[clips, 3, frames, height, width]`` to latents.
        decode: back, not clamped.
        batches: clips, frames and size of a batch, all of about one cost, the shortest first.
    """

    vae: nn.Module
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    batches: Sequence[tuple[int, int, int]]


def skyreels_codec() -> Codec:
    """A Wan VAE; single frames teach forms, long clips motion."""
    vae = new_wan_vae()
    use_planes(vae)
    patch = vae.config.patch_size
    sizes = (
        (16, 1, 32),
        (4, 1, 64),
        (6, 5, 32),
        (2, 5, 64),
        (3, 9, 32),
        (1, 9, 64),
        (1, 17, 48),
        (1, 33, 32),
    )
    return Codec(
        vae,
        lambda video: encode(vae, patchify(video, patch)),
        lambda latents: unpatchify(decode(vae, latents), patch),
        sizes,
    )


def magi_codec() -> Codec:
    """MAGI-1's autoencoder, trained on tiles as it is run."""
    vae = AutoencoderKLMagi(**MAGI_CONFIG)
    for name, parameter in vae.named_parameters():
        if name.endswith(("pos_embed", "cls_token")):
            nn.init.normal_(parameter, std=0.02)
    sizes = ((8, 4, 64), (4, 8, 64), (3, 12, 64))
    return Codec(vae, lambda video: vae.encode(video).latent_dist.mean, vae.decode, sizes)


CODECS = {"skyreels": skyreels_codec, "magi": magi_codec}


def draw_batch(rng: np.random.Generator, clips: int, frames: int, size: int) -> Tensor:
    """Clips ``[clips, 3, frames, size, size]``, cut from videos of 64 x 64 where they are smaller."""
    videos = []
    for _ in range(clips):
        video = render(draw_scene(rng), frames, start=int(rng.integers(300)))
        if rng.random() < 0.1:  # a still picture, as a first frame is
            video = video[:, :1].expand_as(video)
        top, left = (8 * rng.integers((64 - size) // 8 + 1, size=2)).tolist()
        videos.append(video[:, :, top : top + size, left : left + size])
    return torch.stack(videos)


def training_loss(codec: Codec, video: Tensor, noise: float) -> tuple[Tensor, float]:
    """Loss of a round trip through noisy latents, and its PSNR in dB."""
    latents = codec.encode(video)
    spread = latents.detach().std()
    error = codec.decode(latents + noise * spread * torch.randn_like(latents)) - video
    # Outside [-1, 1] an error is none, as it is clamped in the end; there it only keeps the output near.
    loss = error.abs().mean() + error.square().mean() + 1e-3 * (latents.square().mean() - 1).clamp_min(0)
    mse = (error.detach() + video).clamp(-1, 1).sub(video).square().mean().item() / 4
    return loss, -10 * math.log10(max(mse, 1e-10))


def learning_rate(step: int, done: float) -> float:
    """Share of the peak: a short warm-up, then a fall to nothing, first fast."""
    return min(1.0, (step + 1) / 20) * max(0.0, 1 - done) ** 2


def train(codec: Codec, args: argparse.Namespace) -> None:
    """Train for the given time."""
    rng = np.random.default_rng(args.seed)
    matrices, rest = split_parameters(codec.vae)
    optimizers = [Muon(matrices, lr=args.lr), torch.optim.AdamW(rest, lr=0.1 * args.lr, betas=(0.9, 0.99))]
    logger.info("%.2fM parameters", sum(p.numel() for p in codec.vae.parameters()) / 1e6)
    batches = codec.batches
    start, step, ratios = time.monotonic(), 0, {batch: [] for batch in batches}
    with tqdm(total=args.minutes, unit="min", mininterval=10) as bar:
        while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
            batch = batches[rng.integers(-(-len(batches) // 2) if done < 0.1 else len(batches))]
            loss, ratio = training_loss(codec, draw_batch(rng, *batch), args.noise)
            codec.vae.zero_grad()
            loss.backward()
            for optimizer, peak in zip(optimizers, (args.lr, 0.1 * args.lr), strict=True):
                optimizer.param_groups[0]["lr"] = peak * learning_rate(step, done)
                optimizer.step()
            step += 1
            ratios[batch].append(ratio)
            if step % 100 == 0:
                means = {f"{f}x{s}": f"{np.mean(r[-20:]):.1f}" for (_, f, s), r in ratios.items() if r}
                logger.info("step %d, %.0f%%, PSNR %s", step, 100 * done, means)
            bar.update(args.minutes * done - bar.n)


@torch.no_grad()
def set_statistics(codec: Codec, clips: int = 96) -> None:
    """Measure the latents' mean and spread, which the pipelines normalise with."""
    rng = np.random.default_rng(1)
    frames = max(frames for _, frames, size in codec.batches if size == 64)
    latents = torch.cat([codec.encode(draw_batch(rng, 1, frames, 64)) for _ in range(clips)])
    if isinstance(codec.vae, AutoencoderKLMagi):
        codec.vae.register_to_config(scaling_factor=1 / latents.std().item())
        return
    dims = (0, 2, 3, 4)
    codec.vae.register_to_config(
        latents_mean=latents.mean(dims).tolist(), latents_std=latents.std(dims).clamp_min(1e-3).tolist()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CODECS, default="skyreels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the VAE")
    parser.add_argument("--start", type=Path, help="folder of a VAE to go on from")
    parser.add_argument("--minutes", type=float, default=18, help="wall time to train for")
    parser.add_argument("--lr", type=float, default=0.012)
    parser.add_argument("--noise", type=float, default=0.2, help="noise on latents, share of their spread")
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    codec = CODECS[args.model]()
    if args.start:
        codec.vae.load_state_dict(type(codec.vae).from_pretrained(args.start).state_dict())
    train(codec, args)
    set_statistics(codec)
    codec.vae.save_pretrained(args.out)
    record = vars(args)
    if args.start:
        record |= {"start": json.loads((args.start / "arguments.json").read_text())}
    write_atomically(args.out / "arguments.json", json.dumps(record, default=str).encode())
    logger.info("wrote %s", args.out)


if __name__ == "__main__":
    main()
