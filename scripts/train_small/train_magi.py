"""Train the small MAGI-1 transformer and its text encoder on moving shapes."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from latent_pool import LatentPool, held_out_captions
from magi_transformer import CHUNK, ClipAttend, clip_mask, new_magi_transformer, run_clips
from text import build_t5_encoder, build_tokenizer
from torch import Tensor, nn
from trainer import main

from magi1.captions import NULL_TOKENS
from magi1.schedule import CLEAN_TIME, Timetable
from magi1.vae import AutoencoderKLMagi, Tiling

CHUNKS = 4  # of the longest clip, which is also the window
STEPS = (8, 16, 32, 64)


class MagiTask:
    """Velocity of latents with a time for every chunk, as the staircase has them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        vae = AutoencoderKLMagi.from_pretrained(args.vae).eval().to(args.device)
        vae.enable_tiling(Tiling(None, vae.config.video_length))
        self._pool = LatentPool(
            lambda video: vae.encode(video.to(args.device)).latent_dist.mean * vae.config.scaling_factor,
            held_out_captions(),
            vae.config.patch_length * CHUNK * CHUNKS,
            args.clips,
            args.seed + 1,
        )
        self._tokenizer = build_tokenizer()
        self._model = new_magi_transformer().to(args.device)
        self._encoder = build_t5_encoder(len(self._tokenizer)).to(args.device)
        self.modules = {"transformer": self._model, "text_encoder": self._encoder}
        self.blocks = self._model.blocks

    def grow(self) -> None:
        self._pool.grow()

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        # first what things look like, then how they move
        chunks = CHUNKS if rng.random() < 0.3 + 0.4 * done else int(rng.integers(1, CHUNKS))
        samples = round(self._args.batch * CHUNKS / chunks)
        latents, captions = self._pool.draw(rng, samples, chunks * CHUNK)
        plans = [draw_times(rng, chunks) for _ in range(samples)]
        times, clean, counted, steps = (torch.stack(parts) for parts in zip(*plans, strict=True))
        with_text = torch.from_numpy(rng.random(samples) > 0.1)
        alone = torch.from_numpy(rng.random(samples) < 0.15)
        held = draw_held(rng, samples, chunks, clean)
        noise, device = torch.randn_like(latents), self._args.device
        times, clean, counted, steps, with_text, alone, held = (
            x.to(device) for x in (times, clean, counted, steps, with_text, alone, held)
        )
        t = times.repeat_interleave(CHUNK, dim=1)[:, None, :, None, None]
        noisy = t * latents + (1 - t) * noise
        noisy = torch.where(held[:, None, :, None, None], latents, noisy)
        attend = self._attend(captions, with_text, clean, alone, latents)
        condition = self._condition(times, steps, with_text)
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            velocity = run_clips(self._model, noisy, condition, attend)
        errors = (velocity - (latents - noise)).square().mean(dim=(1, 3, 4))
        weight = counted.repeat_interleave(CHUNK, dim=1) * ~held
        return (errors * weight).sum() / weight.sum().clamp_min(1)

    def _condition(self, times: Tensor, steps: Tensor, with_text: Tensor) -> Tensor:
        """Like ``MagiTransformer3DModel.condition``, with step sizes for some of the clips."""
        model, chunks = self._model, times.shape[1]
        steps = steps.repeat_interleave(chunks)
        told = (steps > 0).unsqueeze(1)
        condition = model.condition(times.flatten(), with_text.repeat_interleave(chunks).tolist())
        return condition + torch.where(told, model.time_embed(2 * steps / 4), 0)

    def _attend(
        self, captions: list[str], with_text: Tensor, clean: Tensor, alone: Tensor, latents: Tensor
    ) -> ClipAttend:
        samples, chunks = clean.shape
        tokens = self._tokenizer(captions, padding=True, return_tensors="pt").to(latents.device)
        text = self._encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        null = self._model.caption_embed.null_caption[:NULL_TOKENS]
        shown = nn.functional.pad(tokens.attention_mask.bool(), (0, NULL_TOKENS - text.shape[1]))
        text = nn.functional.pad(text, (0, 0, 0, NULL_TOKENS - text.shape[1]))
        # clean chunks are seen without text, whatever the branch
        hides = (clean | ~with_text[:, None]).flatten()
        text = torch.where(hides[:, None, None], null, text.repeat_interleave(chunks, dim=0))
        shown = shown.repeat_interleave(chunks, dim=0) | hides[:, None]
        per_chunk = CHUNK * latents.shape[3] * latents.shape[4] // self._model.config.patch_size**2
        mask = clip_mask(chunks, per_chunk, alone)
        return ClipAttend(samples, mask, self._model.caption_embed(text), shown[:, None, None])


def draw_times(rng: np.random.Generator, chunks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A time for every chunk of a clip.

    Most clips are rows of a staircase as sampling walks it: finished chunks first, those that have not begun
    last. The others have any time in each chunk.

    Returns:
        Times ``[chunks]``; which are shown as clean; which count; and the steps that a distilled model is
        told of, 0 for none.
    """
    told = bool(rng.random() < 0.5)
    steps = int(rng.choice(STEPS))
    table = Timetable(steps)
    if rng.random() < 0.7:
        row = int(rng.integers(steps + (chunks - 1) * (steps // CHUNKS)))
        places = [row - chunk * (steps // CHUNKS) for chunk in range(chunks)]
        # Without a clean pass, a finished chunk shows its last step, and its text.
        finished = CLEAN_TIME if rng.random() < 0.75 else table.time(steps - 1)
        times = [0.0 if p < 0 else table.time(p) if p < steps else finished for p in places]
        counted = [0 <= p < steps for p in places]
        clean = [p >= steps and finished == CLEAN_TIME for p in places]
    else:
        squared = rng.random(chunks) ** 2
        times = (squared / 3 / (1 - 2 / 3 * squared)).tolist()
        counted, clean = [True] * chunks, [False] * chunks
    flags = (torch.tensor(clean), torch.tensor(counted), torch.tensor(float(steps if told else 0)))
    return torch.tensor(times, dtype=torch.float32), *flags


def draw_held(rng: np.random.Generator, samples: int, chunks: int, clean: Tensor) -> Tensor:
    """Frames that are given inside the first chunk that is not clean, ``[samples, frames]``."""
    held = torch.zeros(samples, chunks * CHUNK, dtype=torch.bool)
    for sample in np.flatnonzero(rng.random(samples) < 0.25):
        first = int(clean[sample].sum())
        if first < chunks:
            count = 1 if rng.random() < 0.5 else int(rng.integers(1, CHUNK))
            held[sample, first * CHUNK : first * CHUNK + count] = True
    return held


if __name__ == "__main__":
    main(MagiTask, __doc__)
