"""Train the small SkyReels-V2 transformer and its text encoder on moving shapes."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from flowcache.files import write_json
from flowcache.wan.solver import noise_grid
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline

from .moving_shapes import ASSETS
from .trainer import LatentPool, TransformerTask, train_transformer

SMALL = ASSETS / "skyreels_v2_small"
BLOCK = 5  # latent frames
WINDOW = 25  # latent frames of the longest clip
CLEAN = 0.02  # most noise of a frame that has nothing to learn
#: Share of batches of a continued training whose clean frames are the model's own guesses, so that it learns to mend
#: its faults, and the noise levels that it guesses from.
OWN, GUESSED = 0.7, (0.3, 0.7)
SHORT = 5  # latent frames of the cheap clips, of which there are more, and which teach what things look like


class SkyReelsTask(TransformerTask):
    """Velocity of latents with a noise level for every frame; half with full, half with causal attention."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.start:
            options = {"torch_dtype": torch.float32}
            transformer = SkyReelsV2Transformer3DModel.from_pretrained(args.start / "transformer", **options)
            encoder = UMT5EncoderModel.from_pretrained(args.start / "text_encoder", dtype=torch.float32)
        else:
            config = SkyReelsV2Transformer3DModel.load_config(SMALL / "transformer")
            transformer = SkyReelsV2Transformer3DModel.from_config(config)
            # the velocity is 0 at first
            nn.init.zeros_(transformer.proj_out.weight)
            nn.init.zeros_(transformer.proj_out.bias)
            encoder = UMT5EncoderModel(UMT5Config.from_pretrained(SMALL / "text_encoder"))
        super().__init__(args, transformer, encoder, SMALL / "tokenizer")
        self._vae = vae = AutoencoderKLWan.from_pretrained(args.vae, torch_dtype=torch.float32).eval().to(args.device)
        mean, std = (
            torch.tensor(values, device=args.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

        def encode(video: Tensor) -> Tensor:
            return (vae.encode(video.to(args.device)).latent_dist.mean - mean) / std

        self._long = LatentPool(encode, 4 * WINDOW - 3, args.clips, args.seed + WINDOW)
        self._short = LatentPool(encode, 4 * SHORT - 3, 4 * args.clips, args.seed + SHORT)

    def export(self, out: Path, dtype: torch.dtype) -> None:
        self.transformer._set_ar_attention(1)
        scheduler = UniPCMultistepScheduler.from_pretrained(SMALL / "scheduler")
        parts = (part.to(dtype) for part in (self.encoder, self.transformer, self._vae))
        FlowCacheSkyReelsV2Pipeline(self.tokenizer, *parts, scheduler).save_pretrained(out)
        write_json(out / "defaults.json", json.loads((SMALL / "defaults.json").read_text()))

    def grow(self) -> None:
        self._long.grow()
        for _ in range(4):
            self._short.grow()

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        device = self.args.device
        causal = bool(rng.random() < 0.5)
        # first what things look like, then how they move
        short = bool(rng.random() < 0.8 - 0.5 * done)
        longest = SHORT if short else WINDOW
        frames = longest if rng.random() < 0.7 else int(rng.integers(1, longest))
        if causal:  # diffusers masks whole blocks
            frames = -(-frames // BLOCK) * BLOCK
        clips = round(self.args.batch * WINDOW / longest)
        latents, captions = (self._short if short else self._long).draw(rng, clips, frames)
        captions = [caption if rng.random() > 0.1 else "" for caption in captions]
        levels = torch.stack([draw_levels(rng, frames, causal) for _ in captions]).to(device)
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        # as in the pipeline, zero behind the end of each caption
        text = self.encoder(ids, mask).last_hidden_state * mask.unsqueeze(-1)
        self.transformer._set_ar_attention(BLOCK if causal else 1)

        def run(seen: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
            """The noisy latents, and their velocity."""
            sigma = levels[:, None, :, None, None]
            with torch.autocast(device, torch.bfloat16, enabled=self.args.bfloat16):
                noisy = (1 - sigma) * seen + sigma * noise
                velocity = self.transformer(noisy, 1000 * levels, text, enable_diffusion_forcing=True).sample
            return noisy, velocity.float()

        seen, clean = latents, levels <= CLEAN
        if self.args.start and bool(clean.any()) and rng.random() < OWN:
            level = torch.from_numpy(rng.uniform(*GUESSED, (clips, 1))).float().to(device)
            with torch.no_grad():
                noisy, velocity = run(latents, torch.randn_like(latents), level.expand_as(levels))
            guess = noisy - level[..., None, None, None] * velocity
            seen = torch.where(clean[:, None, :, None, None], guess, latents)
        noise = torch.randn_like(latents)
        _, velocity = run(seen, noise, levels)
        errors = (velocity - (noise - latents)).square().mean(dim=(1, 3, 4))
        # nothing to learn where noise is too weak to see, nor before the first step
        counted = (~clean & (levels < 1)).float()
        return (errors * counted).sum() / counted.sum().clamp_min(1)


def draw_levels(rng: np.random.Generator, num_frames: int, causal: bool) -> Tensor:
    """Draw a noise level for every latent frame, ``[frames]``, 0 (clean) to 1 (not started).

    Half are rows of a staircase as in sampling, the rest are one level for each block or one for all. Some samples
    then get given frames: a clean or slightly noisy first block, a clean first frame, or clean first and last frames.
    """
    num_blocks = -(-num_frames // BLOCK)
    kind = rng.random()
    if kind < 0.5:
        steps, lag = int(rng.choice([30, 50])), int(rng.choice([3, 5, 5, 10]))
        grid = noise_grid(steps, float(rng.choice([3, 5, 8, 8])))
        row = int(rng.integers(steps + (num_blocks - 1) * lag))
        # a clean block shows no noise, or that of its last step, as its cached keys do
        clean = 0.0 if rng.random() < 0.5 else grid[-2]
        places = [row - lag * block for block in range(num_blocks)]
        levels = np.array([1.0 if p < 0 else grid[p] if p < steps else clean for p in places])
    else:
        uniform = rng.random(num_blocks) if kind < 0.8 else np.repeat(rng.random(1), num_blocks)
        shift = np.exp(rng.uniform(0, np.log(8)))
        levels = np.clip(shift * uniform / (1 + (shift - 1) * uniform), 0.002, 0.999)
    frames = np.repeat(levels, BLOCK)[:num_frames]
    kind = rng.random()
    if kind < 0.25 and num_frames > BLOCK:
        frames[:BLOCK] = rng.choice([0.0, 0.02])
    elif kind < 0.40:
        frames[0] = 0.0
    elif kind < 0.45 and not causal and num_frames > 1:
        frames[0] = frames[-1] = 0.0
    return torch.from_numpy(frames).float()


if __name__ == "__main__":
    train_transformer(SkyReelsTask, __doc__)
