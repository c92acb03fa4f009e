"""The training loop of the small autoencoders and transformers, and their data."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from flowcache.files import replaced_when_done, write_atomically

from .moving_shapes import draw_scene, read_held_out, render


class Task:
    """A model and what it learns; Muon updates the matrices of ``blocks``, AdamW the rest of ``modules``."""

    modules: dict[str, nn.Module]
    blocks: nn.Module

    def grow(self) -> None:
        """Make one more clip."""

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        """Loss of a new batch; ``done`` is the share of the time spent so far."""
        raise NotImplementedError

    def learning_rate(self, step: int, done: float) -> float:
        """Share of the peak: warm up over 100 steps, hold, fall to 0 over most of the time."""
        return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - done) / 0.7))

    def finish(self, out: Path) -> None:
        """Write what follows from the trained weights."""


class LatentPool:
    """Encoded clips with captions that are not held out; grows during training, which can so start at once.

    ``encode`` maps a video ``[1, 3, frames, height, width]`` in [-1, 1] to normalised latents; at most
    ``limit`` clips.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], frames: int, limit: int, seed: int) -> None:
        self._encode, self._frames, self._limit = encode, frames, limit
        self._rng = np.random.default_rng(seed)
        self._held_out = frozenset(read_held_out())
        self._clips: list[tuple[Tensor, str]] = []

    @torch.no_grad()
    def grow(self) -> None:
        if len(self._clips) < self._limit:
            scene = draw_scene(self._rng, self._held_out)
            video = render(scene, self._frames, start=int(self._rng.integers(200)))
            self._clips.append((self._encode(video.unsqueeze(0))[0], scene.caption))

    def draw(self, rng: np.random.Generator, clips: int, frames: int) -> tuple[Tensor, list[str]]:
        """Draw random clips, ``[clips, channels, frames, h, w]``, and their captions."""
        latents, captions = zip(*(self._clips[i] for i in rng.integers(len(self._clips), size=clips)), strict=True)
        return torch.stack([clip[:, :frames] for clip in latents]), list(captions)


class Training:
    """State of a training run; can be saved at any step and resumed."""

    def __init__(self, task: Task, args: argparse.Namespace) -> None:
        self.task, self.args = task, args
        self.rng = np.random.default_rng(args.seed)
        self.weights = [weight for module in task.modules.values() for weight in module.parameters()]
        self.average = EMAModel(self.weights, decay=args.ema, foreach=True)
        self._matrices = find_matrices(task.blocks)
        # Kernels of convolutions are flattened behind the first dimension; the memory is the same.
        self._flat = [nn.Parameter(weight.detach().flatten(1)) for weight in self._matrices]
        ids = set(map(id, self._matrices))
        rest = [weight for weight in self.weights if id(weight) not in ids]
        self._optimizers = [
            torch.optim.Muon(self._flat, lr=args.lr, weight_decay=0),
            torch.optim.AdamW(rest, lr=0.1 * args.lr, betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self._parts = {"modules": list(task.modules.values()), "optimizers": self._optimizers}
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def done(self) -> float:
        return self.seconds / (60 * self.args.minutes)

    def step(self) -> None:
        """Update once; every third step adds a clip."""
        started = time.monotonic()
        if len(self.losses) % 3 == 0:
            self.task.grow()
        factor = self.task.learning_rate(len(self.losses), self.done)
        loss = self.task.loss(self.rng, self.done)
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * factor
        for weight in self.weights:
            weight.grad = None
        loss.backward()
        for flat, weight in zip(self._flat, self._matrices, strict=True):
            flat.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self._optimizers:
            optimizer.step()
        self.average.step(self.weights)
        self.losses.append(loss.item())
        self.seconds += time.monotonic() - started

    def save(self, folder: Path) -> None:
        """Write the averaged weights, the losses, the arguments and the state to resume from."""
        state = {name: [part.state_dict() for part in parts] for name, parts in self._parts.items()}
        state |= {"average": self.average.state_dict(), "seconds": self.seconds, "losses": self.losses}
        with replaced_when_done(folder / "state.pt") as path:
            torch.save(state, path)
        self.average.store(self.weights)
        self.average.copy_to(self.weights)
        with replaced_when_done(folder / "weights.pt") as path:
            torch.save({name: module.state_dict() for name, module in self.task.modules.items()}, path)
        self.average.restore(self.weights)
        losses = [round(loss, 4) for loss in self.losses]
        write_atomically(folder / "losses.json", json.dumps(losses).encode())
        write_atomically(folder / "arguments.json", json.dumps(vars(self.args), default=str).encode())

    def resume(self, folder: Path) -> None:
        """Load a saved state; clips are drawn again."""
        state = torch.load(folder / "state.pt", weights_only=True, map_location=self.args.device)
        self.average.load_state_dict(state["average"])
        for name, parts in self._parts.items():
            for part, saved in zip(parts, state[name], strict=True):
                part.load_state_dict(saved)
        self.seconds, self.losses = state["seconds"], state["losses"]
        self.rng = np.random.default_rng([self.args.seed, len(self.losses)])


def find_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights for Muon; biases, norms, embeddings and single rows are left to AdamW."""
    layers = (child for child in module.modules() if isinstance(child, (nn.Linear, nn.Conv2d, nn.Conv3d)))
    parameters = (parameter for layer in layers for parameter in layer.parameters(recurse=False))
    return [p for p in parameters if p.ndim > 1 and min(p.shape[0], p[0].numel()) > 1]


def train(task: Task, args: argparse.Namespace) -> None:
    """Train for the given time, with a checkpoint every ``save_every`` steps."""
    args.out.mkdir(parents=True, exist_ok=True)
    training = Training(task, args)
    if args.resume:
        training.resume(args.out)
    for _ in tqdm(range(args.first_clips), unit="clip", mininterval=10):
        task.grow()
    with tqdm(total=args.minutes, initial=training.seconds / 60, unit="min", mininterval=30) as bar:
        while training.done < 1:
            training.step()
            bar.update(training.seconds / 60 - bar.n)
            losses = training.losses
            bar.set_postfix(step=len(losses), loss=np.mean(losses[-50:]), refresh=False)
            if len(losses) % args.save_every == 0:
                training.save(args.out)
    training.save(args.out)
    training.average.copy_to(training.weights)
    task.finish(args.out)


def new_parser(description: str, **defaults: float) -> argparse.ArgumentParser:
    form = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for weights and losses")
    add("--minutes", type=float, default=60, help="training time, without pauses")
    add("--lr", type=float, default=0.015, help="of Muon; AdamW takes a tenth")
    add("--ema", type=float, default=0.998, help="decay of the averaged weights")
    add("--save-every", type=int, default=200, help="steps between checkpoints")
    add("--resume", action="store_true", help="continue the training in --out")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="of the transformers")
    add("--seed", type=int, default=0, help="of weights and clips")
    parser.set_defaults(**defaults)
    return parser


def train_transformer(new_task: Callable[[argparse.Namespace], Task], description: str) -> None:
    """Train a transformer on clips that a trained VAE encodes, as the command line says."""
    parser = new_parser(description)
    add = parser.add_argument
    add("--vae", type=Path, required=True, help="folder of the trained VAE")
    add("--batch", type=int, default=8, help="clips of full length, or more short ones")
    add("--first-clips", type=int, default=300, help="clips to encode before the first step")
    add("--clips", type=int, default=2500, help="clips to encode in all")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train(new_task(args), args)
