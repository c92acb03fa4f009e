"""The training loop of the small transformers, whichever model they belong to."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from muon import Muon, split_parameters
from torch import Tensor, nn
from tqdm import tqdm

from flowcache.files import replaced_when_done, write_atomically

logger = logging.getLogger(__name__)


class Task(Protocol):
    """A model and what it is to learn."""

    #: modules to train, by the name under which their weights are saved
    modules: dict[str, nn.Module]

    #: the part of them whose matrices Muon moves; AdamW moves the rest
    blocks: nn.Module

    def grow(self) -> None:
        """Make one more clip."""
        ...

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        """Loss of a new batch; ``done`` is the share of the time that is spent."""
        ...


class Training:
    """Everything that training changes; can be saved at any step and taken up again."""

    def __init__(self, task: Task, args: argparse.Namespace) -> None:
        self.task, self.args = task, args
        self.rng = np.random.default_rng(args.seed)
        self._modules = list(task.modules.values())
        self._weights = [weight for module in self._modules for weight in module.parameters()]
        self._average = EMAModel(self._weights, decay=args.ema, foreach=True)
        matrices, _ = split_parameters(task.blocks)
        ids = {id(weight) for weight in matrices}
        rest = [weight for weight in self._weights if id(weight) not in ids]
        self._optimizers = [
            Muon(matrices, lr=args.lr),
            torch.optim.AdamW(rest, lr=0.1 * args.lr, betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def done(self) -> float:
        """Share of the time that is spent."""
        return self.seconds / (60 * self.args.minutes)

    def step(self) -> None:
        """One update; every third one comes with a new clip."""
        started = time.monotonic()
        if len(self.losses) % 3 == 0:
            self.task.grow()
        factor = learning_rate(len(self.losses), self.done)
        for optimizer, peak in zip(self._optimizers, (self.args.lr, 0.1 * self.args.lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.zero_grad()
        loss = self.task.loss(self.rng, self.done)
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        self._average.step(self._weights)
        self.losses.append(loss.item())
        self.seconds += time.monotonic() - started

    def save(self, folder: Path) -> None:
        """Write the averaged weights, the losses, and what is needed to go on."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": [module.state_dict() for module in self._modules],
            "average": self._average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "seconds": self.seconds,
            "losses": self.losses,
        }
        with replaced_when_done(folder / "state.pt") as path:
            torch.save(state, path)
        self._average.store(self._weights)
        self._average.copy_to(self._weights)
        with replaced_when_done(folder / "weights.pt") as path:
            torch.save({name: module.state_dict() for name, module in self.task.modules.items()}, path)
        self._average.restore(self._weights)
        losses = [round(loss, 4) for loss in self.losses]
        write_atomically(folder / "losses.json", json.dumps(losses).encode())
        write_atomically(folder / "arguments.json", json.dumps(vars(self.args), default=str).encode())

    def resume(self, folder: Path) -> None:
        """Take up a saved training; the clips are drawn anew."""
        state = torch.load(folder / "state.pt", weights_only=True, map_location=self.args.device)
        self._average.load_state_dict(state["average"])
        for name, objects in (("modules", self._modules), ("optimizers", self._optimizers)):
            for target, saved in zip(objects, state[name], strict=True):
                target.load_state_dict(saved)
        self.seconds, self.losses = state["seconds"], state["losses"]
        self.rng = np.random.default_rng([self.args.seed, len(self.losses)])


def learning_rate(step: int, done: float) -> float:
    """Share of the peak: warm up over 100 steps, hold, and fall to nothing over most of the time."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, (1 - done) / 0.7))


def train(task: Task, args: argparse.Namespace) -> None:
    """Train for the given time, saving now and then."""
    training = Training(task, args)
    if args.resume:
        training.resume(args.out)
    for _ in tqdm(range(args.first_clips), unit="clip", mininterval=10):
        task.grow()
    count = sum(p.numel() for module in task.modules.values() for p in module.parameters())
    logger.info("%.2fM parameters", count / 1e6)
    with tqdm(total=args.minutes, initial=training.seconds / 60, unit="min", mininterval=30) as bar:
        while training.done < 1:
            training.step()
            bar.update(training.seconds / 60 - bar.n)
            step, losses = len(training.losses), training.losses
            if step % 50 == 0:
                logger.info("step %d, %.0f s, loss %.4f", step, training.seconds, np.mean(losses[-50:]))
            if step % args.save_every == 0:
                training.save(args.out)
    training.save(args.out)


def main(new_task: Callable[[argparse.Namespace], Task], description: str) -> None:
    """Train what the command line asks for."""
    args = new_parser(description).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    train(new_task(args), args)


def new_parser(description: str) -> argparse.ArgumentParser:
    """The flags that all trainings share."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--vae", type=Path, required=True, help="folder of the trained VAE")
    add("--out", type=Path, required=True, help="folder for weights and losses")
    add("--minutes", type=float, default=60, help="time to train for, without pauses")
    add("--batch", type=int, default=8, help="clips of full length, or more short ones")
    add("--lr", type=float, default=0.015, help="of Muon; AdamW takes a tenth")
    add("--ema", type=float, default=0.998)
    add("--first-clips", type=int, default=300, help="clips to encode before the first step")
    add("--clips", type=int, default=2500, help="clips to encode in all")
    add("--save-every", type=int, default=200, help="steps")
    add("--resume", action="store_true", help="go on where the training in --out stopped")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--seed", type=int, default=0)
    return parser
