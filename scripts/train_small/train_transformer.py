"""Train the small SkyReels-V2 transformer and its text encoder on moving shapes."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2AttnProcessor
from moving_shapes import draw_scene, render
from noise_levels import BLOCK, draw_levels
from text import build_text_encoder, build_tokenizer, embed_captions
from torch import Tensor, nn

from flowcache.files import replaced_when_done
from skyreels_v2.attention import rotate

logger = logging.getLogger("train_transformer")

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "ffn_dim": 768,
    "num_layers": 5,
    "text_dim": 64,
    "freq_dim": 256,
}


@dataclass(frozen=True)
class WindowContext:
    """What self attention of a training batch needs: samples, rotations ``[tokens, 1, d / 2]``, a mask."""

    samples: int
    rotary: Tensor
    mask: Tensor | None


class WindowSelfAttention(SkyReelsV2AttnProcessor):
    """Self attention over whole windows whose frames lie in the batch dimension."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        context = rotary_emb
        sequences = hidden_states.reshape(context.samples, -1, hidden_states.shape[-1])
        heads = (attn.heads, -1)
        query = rotate(attn.norm_q(attn.to_q(sequences)).unflatten(2, heads), context.rotary)
        key = rotate(attn.norm_k(attn.to_k(sequences)).unflatten(2, heads), context.rotary)
        value = attn.to_v(sequences).unflatten(2, heads)
        attended = nn.functional.scaled_dot_product_attention(
            *(t.to(value.dtype).transpose(1, 2) for t in (query, key, value)), attn_mask=context.mask
        )
        return attn.to_out[0](attended.transpose(1, 2).flatten(2)).view_as(hidden_states)


class WindowCrossAttention(SkyReelsV2AttnProcessor):
    """Cross attention to one caption a sample, with the frames of a sample in the batch dimension."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        sequences = hidden_states.reshape(encoder_hidden_states.shape[0], -1, hidden_states.shape[-1])
        return super().__call__(attn, sequences, encoder_hidden_states).view_as(hidden_states)


class WindowTransformer(nn.Module):
    """Diffusers' transformer, run on whole windows with a noise level for every frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.core = SkyReelsV2Transformer3DModel(in_channels=channels, out_channels=channels, **CONFIG)
        for block in self.core.blocks:
            block.attn1.set_processor(WindowSelfAttention())
            block.attn2.set_processor(WindowCrossAttention())
        nn.init.zeros_(self.core.proj_out.weight)
        nn.init.zeros_(self.core.proj_out.bias)

    def forward(self, latents: Tensor, levels: Tensor, text: Tensor, causal: bool) -> Tensor:
        """Velocity of ``latents [samples, channels, frames, h, w]`` at ``levels [samples, frames]``."""
        core, (samples, channels, frames, height, width) = self.core, latents.shape
        with torch.autocast("cpu", enabled=False):
            tokens = core.patch_embedding(latents).flatten(3).permute(0, 2, 3, 1).flatten(0, 1)
            cos, sin = core.rope(latents)
            rotary = torch.complex(cos[0, ..., 0::2].float(), sin[0, ..., 1::2].float())
            embedder = core.condition_embedder
            temb = embedder.time_embedder(embedder.timesteps_proj(1000 * levels.flatten()).float())
            modulation = embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1))
        context = WindowContext(samples, rotary, _causal_mask(frames, tokens.shape[1]) if causal else None)
        text = embedder.text_embedder(text)
        for block in core.blocks:
            tokens = block(tokens, text, modulation, context, None)
        shift, scale = (core.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        tokens = core.proj_out(core.norm_out(tokens.float()) * (1 + scale) + shift).float()
        tokens = tokens.reshape(samples, frames, height // 2, width // 2, 2, 2, channels)
        return tokens.permute(0, 6, 1, 2, 4, 3, 5).reshape(samples, channels, frames, height, width)


def _causal_mask(frames: int, tokens: int) -> Tensor:
    block = torch.arange(frames).repeat_interleave(tokens) // BLOCK
    return block.unsqueeze(0) <= block.unsqueeze(1)


class LatentPool:
    """Encoded clips with their captions; grows while training goes on, so that training starts at once."""

    def __init__(self, vae: AutoencoderKLWan, held_out: frozenset[str], frames: int, limit: int) -> None:
        self._vae, self._held_out, self._frames, self._limit = vae, held_out, frames, limit
        self._rng = np.random.default_rng(2)
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)
        self.latents: list[Tensor] = []
        self.captions: list[str] = []

    @torch.no_grad()
    def grow(self, clips: int) -> None:
        """Render and encode more clips, up to the limit."""
        clips = min(clips, self._limit - len(self.latents))
        if clips <= 0:
            return
        scenes = [draw_scene(self._rng, self._held_out) for _ in range(clips)]
        video = torch.stack([render(s, self._frames, start=int(self._rng.integers(200))) for s in scenes])
        latents = (self._vae.encode(video).latent_dist.mode() - self._mean) / self._std
        self.latents.extend(latents.unbind())
        self.captions.extend(scene.caption for scene in scenes)

    def draw(self, rng: np.random.Generator, clips: int, frames: int) -> tuple[Tensor, list[str]]:
        """Random clips, ``[clips, channels, frames, h, w]``, and their captions."""
        picks = rng.integers(len(self.latents), size=clips)
        return torch.stack([self.latents[i][:, :frames] for i in picks]), [self.captions[i] for i in picks]


class Average:
    """Exponential moving average of the weights of some modules."""

    def __init__(self, modules: list[nn.Module], decay: float) -> None:
        self.modules = [copy.deepcopy(module).requires_grad_(False) for module in modules]
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, modules: list[nn.Module]) -> None:
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        for average, module in zip(self.modules, modules, strict=True):
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def learning_rate(peak: float, step: int, done: float) -> float:
    """Warm up over 200 steps, hold, and fall to nothing over the last 40 percent of the time."""
    return peak * min(1.0, (step + 1) / 200) * min(1.0, max(0.01, (1 - done) / 0.4))


def training_loss(
    model: WindowTransformer, latents: Tensor, levels: Tensor, text: Tensor, causal: bool
) -> Tensor:
    """Mean squared error of the velocity, over the frames that carry noise."""
    noise = torch.randn_like(latents)
    sigma = levels[:, None, :, None, None]
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        velocity = model((1 - sigma) * latents + sigma * noise, levels, text, causal)
    errors = (velocity - (noise - latents)).square().mean(dim=(1, 3, 4))
    noisy = (levels > 0).float()
    return (errors * noisy).sum() / noisy.sum()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    vae = AutoencoderKLWan.from_pretrained(args.vae).eval()
    held_out = frozenset(json.loads(Path(__file__).with_name("held_out.json").read_text()))
    pool = LatentPool(vae, held_out, args.frames, args.clips)
    tokenizer = build_tokenizer()
    model, encoder = WindowTransformer(vae.config.z_dim), build_text_encoder(len(tokenizer))
    modules = [model, encoder]
    average = Average(modules, args.ema)
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in range(args.first_clips // 4):
        pool.grow(4)
    logger.info("training on %d clips, %d parameters", len(pool.latents), sum(p.numel() for p in parameters))
    start, step, losses = time.monotonic(), 0, []
    while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        pool.grow(1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, step, done)
        causal = rng.random() < 0.5
        frames = 25 if rng.random() < 0.8 else BLOCK * int(rng.integers(1, 5))
        latents, captions = pool.draw(rng, args.batch, frames)
        captions = [caption if rng.random() > 0.1 else "" for caption in captions]
        levels = torch.stack([draw_levels(rng, frames, causal) for _ in captions])
        loss = training_loss(model, latents, levels, embed_captions(tokenizer, encoder, captions), causal)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(modules)
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            logger.info(
                "step %d, %.0f%%, %d clips, loss %.4f",
                step,
                100 * done,
                len(pool.latents),
                np.mean(losses[-50:]),
            )
        if step % args.save_every == 0:
            save(average.modules, losses, args.out)
    save(average.modules, losses, args.out)


def save(modules: list[nn.Module], losses: list[float], folder: Path) -> None:
    """Write the averaged weights and the loss so far."""
    folder.mkdir(parents=True, exist_ok=True)
    model, encoder = modules
    with replaced_when_done(folder / "weights.pt") as path:
        torch.save({"transformer": model.core.state_dict(), "text_encoder": encoder.state_dict()}, path)
    with replaced_when_done(folder / "losses.json") as path:
        path.write_text(json.dumps(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and losses")
    parser.add_argument("--minutes", type=float, default=70, help="wall time to train for")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--frames", type=int, default=97, help="pixel frames of a clip")
    parser.add_argument("--first-clips", type=int, default=200, help="clips to encode before the first step")
    parser.add_argument("--clips", type=int, default=2500, help="clips to encode in all")
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
