"""Train the small SkyReels-V2 transformer and its text encoder on moving shapes."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from latent_pool import LatentPool
from muon import Muon, split_parameters
from noise_levels import draw_levels, is_trained_on
from text import build_text_encoder, build_tokenizer, embed_captions
from torch import Tensor, nn
from tqdm import tqdm
from window_transformer import WindowTransformer

from flowcache.files import replaced_when_done, write_atomically

logger = logging.getLogger("train_transformer")

WINDOW = 25  # latent frames of the longest clip


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


class Training:
    """Everything that training changes; can be saved at any step and taken up again."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        self.rng = np.random.default_rng(args.seed)
        vae = AutoencoderKLWan.from_pretrained(args.vae).eval().to(args.device)
        held_out = frozenset(json.loads(Path(__file__).with_name("held_out.json").read_text()))
        self.pool = LatentPool(vae, held_out, 4 * WINDOW - 3, args.clips, args.seed + 1)
        self.tokenizer = build_tokenizer()
        self.model = WindowTransformer(vae.config.z_dim).to(args.device)
        self.encoder = build_text_encoder(len(self.tokenizer)).to(args.device)
        self.average = Average([self.model, self.encoder], args.ema)
        matrices, _ = split_parameters(self.model.core.blocks)
        ids = {id(weight) for weight in matrices}
        rest = [w for m in (self.model, self.encoder) for w in m.parameters() if id(w) not in ids]
        self.optimizers = [
            Muon(matrices, lr=args.lr),
            torch.optim.AdamW(rest, lr=0.1 * args.lr, betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self.peaks = [args.lr, 0.1 * args.lr]
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def done(self) -> float:
        """Share of the time that is spent."""
        return self.seconds / (60 * self.args.minutes)

    def step(self) -> None:
        """One update, with full or with block-causal attention."""
        started = time.monotonic()
        if len(self.losses) % 2 == 0:
            self.pool.grow(1)
        factor = learning_rate(len(self.losses), self.done)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.average.update([self.model, self.encoder])
        self.losses.append(loss.item())
        self.seconds += time.monotonic() - started

    def _loss(self) -> Tensor:
        """Mean squared error of the velocity, over the frames that there is something to learn on."""
        rng, device = self.rng, self.args.device
        causal = bool(rng.random() < 0.5)
        frames = WINDOW if rng.random() < 0.5 else int(rng.integers(1, WINDOW))
        clips = round(self.args.batch * WINDOW / max(frames, 5))
        latents, captions = self.pool.draw(rng, clips, frames)
        captions = [caption if rng.random() > 0.1 else "" for caption in captions]
        levels = torch.stack([draw_levels(rng, frames, causal) for _ in captions]).to(device)
        text = embed_captions(self.tokenizer, self.encoder, captions)
        noise, sigma = torch.randn_like(latents), levels[:, None, :, None, None]
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            velocity = self.model((1 - sigma) * latents + sigma * noise, levels, text, causal)
        errors = (velocity.float() - (noise - latents)).square().mean(dim=(1, 3, 4))
        counted = is_trained_on(levels).float()
        return (errors * counted).sum() / counted.sum().clamp_min(1)

    def save(self, folder: Path) -> None:
        """Write the averaged weights, the losses, and what is needed to go on."""
        folder.mkdir(parents=True, exist_ok=True)
        model, encoder = self.average.modules
        weights = {"transformer": model.core.state_dict(), "text_encoder": encoder.state_dict()}
        state = {
            "modules": [module.state_dict() for module in (self.model, self.encoder)],
            "average": [module.state_dict() for module in self.average.modules],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "seconds": self.seconds,
            "losses": self.losses,
        }
        for name, content in (("weights.pt", weights), ("state.pt", state)):
            with replaced_when_done(folder / name) as path:
                torch.save(content, path)
        losses = [round(loss, 4) for loss in self.losses]
        write_atomically(folder / "losses.json", json.dumps(losses).encode())
        write_atomically(folder / "arguments.json", json.dumps(vars(self.args), default=str).encode())

    def resume(self, folder: Path) -> None:
        """Take up a saved training; the clips are drawn anew."""
        state = torch.load(folder / "state.pt", weights_only=True, map_location=self.args.device)
        for name, objects in (
            ("modules", (self.model, self.encoder)),
            ("average", self.average.modules),
            ("optimizers", self.optimizers),
        ):
            for target, saved in zip(objects, state[name], strict=True):
                target.load_state_dict(saved)
        self.seconds, self.losses = state["seconds"], state["losses"]
        self.rng = np.random.default_rng([self.args.seed, len(self.losses)])


def learning_rate(step: int, done: float) -> float:
    """Share of the peak: warm up over 100 steps, hold, and fall to nothing over most of the time."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - done) / 0.7))


def train(args: argparse.Namespace) -> None:
    training = Training(args)
    if args.resume:
        training.resume(args.out)
    for _ in range(args.first_clips):
        training.pool.grow(1)
    parameters = sum(p.numel() for p in training.model.parameters())
    logger.info("%.2fM parameters, %d clips at first", parameters / 1e6, len(training.pool))
    with tqdm(total=args.minutes, initial=training.seconds / 60, unit="min", mininterval=30) as bar:
        while training.done < 1:
            training.step()
            bar.update(training.seconds / 60 - bar.n)
            step, losses = len(training.losses), training.losses
            if step % 50 == 0:
                mean = np.mean(losses[-50:])
                logger.info(
                    "step %d, %.0f s, %d clips, loss %.4f", step, training.seconds, len(training.pool), mean
                )
            if step % args.save_every == 0:
                training.save(args.out)
    training.save(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and losses")
    parser.add_argument("--minutes", type=float, default=60, help="time to train for, without pauses")
    parser.add_argument("--batch", type=int, default=8, help="clips of full length, or more short ones")
    parser.add_argument("--lr", type=float, default=0.015, help="of Muon; AdamW takes a tenth")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--first-clips", type=int, default=300, help="clips to encode before the first step")
    parser.add_argument("--clips", type=int, default=2500, help="clips to encode in all")
    parser.add_argument("--save-every", type=int, default=200, help="steps")
    parser.add_argument("--resume", action="store_true", help="go on where the training in --out stopped")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
