"""Train the small MAGI-1 transformer and its text encoder on moving shapes."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import T5Config, T5EncoderModel

from flowcache.files import write_json
from magi1.captions import NULL_TOKENS
from magi1.checkpoint import T5_FOLDER, load_transformer
from magi1.config import MagiConfig
from magi1.conversion import official_key
from magi1.schedule import CLEAN_TIME, Timetable
from magi1.transformer import MagiTransformer3DModel, ProjectText
from magi1.vae import AutoencoderKLMagi, Tiling

from .moving_shapes import ASSETS
from .trainer import LatentPool, TransformerTask, train_transformer

SMALL = ASSETS / "magi1_small"
CHUNK = 6  # latent frames
CHUNKS = 4  # of the longest clip, which is also the window
STEPS = (8, 16, 32, 64)
TEXT_FOLDER = SMALL / "t5" / T5_FOLDER


@dataclass(frozen=True)
class ClipAttend:
    """Implements ``Attend`` for clips of one length: dense attention with masks."""

    samples: int
    mask: Tensor  # [samples, 1, tokens, tokens], true where a query sees a key
    captions: Tensor  # embedded, padded, [samples * chunks, text, cross_dim]
    shown: Tensor  # [samples * chunks, 1, 1, text], false on padding

    def attend_video(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _attend(self.samples, query, key, value, self.mask)

    def attend_text(self, layer: int, query: Tensor, project: ProjectText) -> Tensor:
        return _attend(len(self.captions), query, *project(self.captions.flatten(0, 1)), self.shown)


def _attend(rows: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    parts = (x.float().unflatten(0, (rows, -1)).transpose(1, 2) for x in (query, key, value))
    # in bfloat16, the backward pass on a CPU takes 2.5 times as long
    with torch.autocast(query.device.type, enabled=False):
        return scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True).transpose(1, 2).flatten(0, 1)


def run_clips(model: MagiTransformer3DModel, latents: Tensor, condition: Tensor, attend: ClipAttend) -> Tensor:
    """Velocity of ``latents [samples, channels, frames, h, w]``; ``condition [samples * chunks, dim]``."""
    samples, _, frames, height, width = latents.shape
    tokens = model.embed(latents.transpose(0, 1).flatten(1, 2))  # one clip after another
    rotary = model.rotary(torch.arange(frames, device=latents.device).repeat(samples), height, width)
    hidden = model(tokens, condition, rotary, attend)
    velocity = model.head(hidden, samples * frames, height, width)
    return velocity.unflatten(1, (samples, frames)).transpose(0, 1)


class MagiTask(TransformerTask):
    """Velocity of latents with a time for every chunk, as in the staircase."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._config = json.loads((SMALL / "config.json").read_text())
        if args.start:
            config = MagiConfig.from_file(args.start / "config.json")
            transformer = load_transformer(args.start, config, torch.float32).requires_grad_(True)
            encoder = T5EncoderModel.from_pretrained(args.start / "t5" / T5_FOLDER, dtype=torch.float32)
        else:
            transformer = MagiTransformer3DModel.from_config(self._config["model_config"])
            nn.init.zeros_(transformer.proj_out.weight)
            nn.init.normal_(transformer.caption_embed.null_caption)
            encoder = T5EncoderModel(T5Config.from_pretrained(TEXT_FOLDER))
        super().__init__(args, transformer, encoder, TEXT_FOLDER)
        self._vae = vae = AutoencoderKLMagi.from_pretrained(args.vae, torch_dtype=torch.float32).eval().to(args.device)
        vae.enable_tiling(Tiling(None, vae.config.video_length))

        def encode(video: Tensor) -> Tensor:
            return vae.encode(video.to(args.device)).latent_dist.mean * vae.config.scaling_factor

        self._pool = LatentPool(encode, vae.config.patch_length * CHUNK * CHUNKS, args.clips, args.seed + 1)
        self.grow = self._pool.grow

    def export(self, out: Path, dtype: torch.dtype) -> None:
        weights, text_folder = out / "inference_weight.distill", out / "t5" / T5_FOLDER
        weights.mkdir(parents=True, exist_ok=True)
        state = self.transformer.state_dict()
        tensors = {official_key(name): tensor.to(dtype) for name, tensor in state.items()}
        save_file(tensors, weights / "model.safetensors")
        self.encoder.to(dtype).save_pretrained(text_folder)
        self.tokenizer.save_pretrained(text_folder)
        self._vae.to(dtype).save_pretrained(out / "vae")
        self._config["model_config"]["params_dtype"] = str(dtype)
        self._config["runtime_config"]["scale_factor"] = self._vae.config.scaling_factor
        write_json(out / "config.json", self._config)

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        # first what things look like, then how they move
        chunks = CHUNKS if rng.random() < 0.3 + 0.4 * done else int(rng.integers(1, CHUNKS))
        samples, device = round(self.args.batch * CHUNKS / chunks), self.args.device
        latents, captions = self._pool.draw(rng, samples, chunks * CHUNK)
        drawn = [draw_times(rng, chunks) for _ in range(samples)]
        times, clean, counted, steps = (torch.stack(x).to(device) for x in zip(*drawn, strict=True))
        with_text = torch.from_numpy(rng.random(samples) > 0.1).to(device)
        alone = torch.from_numpy(rng.random(samples) < 0.15).to(device)
        held = draw_held(rng, samples, chunks, clean).to(device)
        noise = torch.randn_like(latents)
        t = times.repeat_interleave(CHUNK, dim=1)[:, None, :, None, None]
        noisy = torch.where(held[:, None, :, None, None], latents, t * latents + (1 - t) * noise)
        attend = self._make_attend(captions, with_text, clean, alone, latents)
        steps = steps.repeat_interleave(chunks)
        condition = self.transformer.condition(times.flatten(), with_text.repeat_interleave(chunks).tolist())
        condition = condition + torch.where((steps > 0)[:, None], self.transformer.time_embed(2 * steps / 4), 0)
        with torch.autocast(device, torch.bfloat16, enabled=self.args.bfloat16):
            velocity = run_clips(self.transformer, noisy, condition, attend)
        errors = (velocity - (latents - noise)).square().mean(dim=(1, 3, 4))
        weight = counted.repeat_interleave(CHUNK, dim=1) * ~held
        return (errors * weight).sum() / weight.sum().clamp_min(1)

    def _make_attend(
        self, captions: list[str], with_text: Tensor, clean: Tensor, alone: Tensor, latents: Tensor
    ) -> ClipAttend:
        """``alone [samples]``: chunks see only themselves."""
        samples, chunks = clean.shape
        tokens = self.tokenizer(captions, padding=True, return_tensors="pt").to(latents.device)
        text = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        null = self.transformer.caption_embed.null_caption[:NULL_TOKENS]
        shown = nn.functional.pad(tokens.attention_mask.bool(), (0, NULL_TOKENS - text.shape[1]))
        text = nn.functional.pad(text, (0, 0, 0, NULL_TOKENS - text.shape[1]))
        # clean chunks are seen without text, whatever the branch
        hides = (clean | ~with_text[:, None]).flatten()
        text = torch.where(hides[:, None, None], null, text.repeat_interleave(chunks, dim=0))
        shown = shown.repeat_interleave(chunks, dim=0) | hides[:, None]
        per_chunk = CHUNK * latents.shape[3] * latents.shape[4] // self.transformer.config.patch_size**2
        chunk = torch.arange(chunks, device=latents.device).repeat_interleave(per_chunk)
        query, key = chunk[:, None], chunk[None]
        mask = torch.where(alone[:, None, None], key == query, key <= query).unsqueeze(1)
        return ClipAttend(samples, mask, self.transformer.caption_embed(text), shown[:, None, None])


def draw_times(rng: np.random.Generator, chunks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a time for every chunk of a clip, most as in a row of the staircase; the others any.

    Returns times, which chunks are shown as clean, which count, and the number of steps that a distilled
    model is conditioned on, 0 for no such condition.
    """
    distilled = bool(rng.random() < 0.5)
    steps = int(rng.choice(STEPS))
    table = Timetable(steps)
    if rng.random() < 0.7:
        row = int(rng.integers(steps + (chunks - 1) * (steps // CHUNKS)))
        places = [row - chunk * (steps // CHUNKS) for chunk in range(chunks)]
        # without a clean pass, a clean chunk shows its last step, and its text
        last = CLEAN_TIME if rng.random() < 0.75 else table.timestep(steps - 1)
        times = [0.0 if p < 0 else table.timestep(p) if p < steps else last for p in places]
        counted = [0 <= p < steps for p in places]
        clean = [p >= steps and last == CLEAN_TIME for p in places]
    else:
        squared = rng.random(chunks) ** 2
        times = (squared / 3 / (1 - 2 / 3 * squared)).tolist()
        counted, clean = [True] * chunks, [False] * chunks
    flags = (torch.tensor(clean), torch.tensor(counted), torch.tensor(float(steps if distilled else 0)))
    return torch.tensor(times, dtype=torch.float32), *flags


def draw_held(rng: np.random.Generator, samples: int, chunks: int, clean: Tensor) -> Tensor:
    """Draw frames that are given inside the first chunk that is not clean, ``[samples, frames]``."""
    held = torch.zeros(samples, chunks * CHUNK, dtype=torch.bool)
    for sample in np.flatnonzero(rng.random(samples) < 0.25):
        first = int(clean[sample].sum())
        if first < chunks:
            count = 1 if rng.random() < 0.5 else int(rng.integers(1, CHUNK))
            held[sample, first * CHUNK : first * CHUNK + count] = True
    return held


if __name__ == "__main__":
    train_transformer(MagiTask, __doc__)
