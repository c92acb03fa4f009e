"""The training loop of the small autoencoders and transformers, their data, and their checkpoints."""

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
from transformers import AutoTokenizer

from flowcache.files import replaced_when_done, write_json
from flowcache.plots.style import COMPUTED

from ..compare import draw_panels
from .moving_shapes import draw_scene, read_held_out, render
from .muon import Muon

#: Share of scenes that are kept, by motion: more of what is harder to learn; of the others ``EASY``.
KEPT, EASY = {"turns": 1.0, "bounces": 0.6, "grows and shrinks": 0.35}, 0.25
#: Keys of configurations that say where a part was read from.
ORIGINS = {"_name_or_path", "is_local", "local_files_only"}


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
            while self._rng.random() > KEPT.get(scene.motion, EASY):
                scene = draw_scene(self._rng, self._held_out)
            video = render(scene, self._frames, start=int(self._rng.integers(200)))
            self._clips.append((self._encode(video.unsqueeze(0))[0], scene.caption))

    def draw(self, rng: np.random.Generator, clips: int, frames: int) -> tuple[Tensor, list[str]]:
        """Draw random clips, ``[clips, channels, frames, h, w]``, and their captions."""
        latents, captions = zip(*(self._clips[i] for i in rng.integers(len(self._clips), size=clips)), strict=True)
        return torch.stack([clip[:, :frames] for clip in latents]), list(captions)


class TransformerTask(Task):
    """A transformer and its text encoder, learnt from clips that a trained VAE encodes.

    Of a training that continues another checkpoint, ``args.start``, the text encoder stays as it is.
    """

    def __init__(self, args: argparse.Namespace, transformer: nn.Module, encoder: nn.Module, tokenizer: Path) -> None:
        self.args, self.tokenizer = args, AutoTokenizer.from_pretrained(tokenizer)
        self.transformer = transformer.to(args.device)
        self.encoder = encoder.to(args.device).requires_grad_(not args.start)
        self.modules = {"transformer": self.transformer}
        if not args.start:
            self.modules["text_encoder"] = self.encoder
        self.blocks = self.transformer.blocks

    def export(self, out: Path, dtype: torch.dtype) -> None:
        """Write the parts in the official layout."""
        raise NotImplementedError

    def finish(self, out: Path) -> None:
        """Write ``checkpoint``, with the record of its training; parts of an earlier one are replaced."""
        checkpoint = out / "checkpoint"
        # without the padding of the last batch
        self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer.name_or_path)
        self.export(checkpoint, getattr(torch, self.args.dtype))
        for path in checkpoint.rglob("*.json"):
            content = json.loads(path.read_text())
            if isinstance(content, dict) and ORIGINS & content.keys():
                write_json(path, {key: value for key, value in content.items() if key not in ORIGINS})
        record, runs = {}, {"transformer": out}
        if self.args.start:
            record["start"] = json.loads((self.args.start / "training.json").read_text())
        else:
            runs["vae"] = self.args.vae
        for name, run in runs.items():
            arguments = json.loads((run / "arguments.json").read_text())
            record[name] = {key: value for key, value in arguments.items() if key not in ("vae", "out", "start")}
        write_json(checkpoint / "training.json", record)
        losses = json.loads((out / "losses.json").read_text())
        window = min(50, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        with draw_panels(checkpoint / "loss_curve.png", 7) as (axis,):
            axis.plot(np.arange(len(smooth)) + window, smooth, color=COMPUTED, lw=1)
            axis.set(xlabel="step", ylabel=f"velocity error, mean of {window} steps", yscale="log")


class Training:
    """A training run for the given time; can be saved at any step and resumed."""

    def __init__(self, task: Task, args: argparse.Namespace) -> None:
        self.task, self.args = task, args
        self.rng = np.random.default_rng(args.seed)
        self.weights = [weight for module in task.modules.values() for weight in module.parameters()]
        self.average = EMAModel(self.weights, decay=args.ema, foreach=True)
        # Muon updates weights of layers; biases, norms, embeddings and single rows are left to AdamW
        layers = (m for m in task.blocks.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d)))
        weights = (layer.weight for layer in layers)
        self._matrices = [weight for weight in weights if min(weight.shape[0], weight[0].numel()) > 1]
        # Kernels of convolutions are flattened behind the first dimension; the memory is the same.
        self._flat = [nn.Parameter(weight.detach().flatten(1)) for weight in self._matrices]
        ids = set(map(id, self._matrices))
        rest = [weight for weight in self.weights if id(weight) not in ids]
        self._optimizers = [
            Muon(self._flat, lr=args.lr),
            torch.optim.AdamW(rest, lr=0.1 * args.lr, betas=(0.9, 0.99), weight_decay=0.01),
        ]
        self._parts = [*task.modules.values(), *self._optimizers, self.average]
        self.losses: list[float] = []
        self.seconds = 0.0

    def run(self) -> None:
        """Train, with a checkpoint every ``save_every`` steps, and finish with the averaged weights."""
        args = self.args
        args.out.mkdir(parents=True, exist_ok=True)
        if args.resume:
            self._resume()
        for _ in tqdm(range(args.first_clips), unit="clip", mininterval=10):
            self.task.grow()
        with tqdm(total=args.minutes, initial=self.seconds / 60, unit="min", mininterval=30) as bar:
            while self.seconds < 60 * args.minutes:
                self._step(self.seconds / (60 * args.minutes))
                bar.update(self.seconds / 60 - bar.n)
                bar.set_postfix(step=len(self.losses), loss=np.mean(self.losses[-50:]), refresh=False)
                if len(self.losses) % args.save_every == 0:
                    self._save()
        self._save()
        self.average.copy_to(self.weights)
        self.task.finish(args.out)

    def _step(self, done: float) -> None:
        """Update once; every third step adds a clip."""
        started = time.monotonic()
        if len(self.losses) % 3 == 0:
            self.task.grow()
        factor = self.task.learning_rate(len(self.losses), done)
        loss = self.task.loss(self.rng, done)
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

    def _save(self) -> None:
        """Write the losses, the arguments and the state to resume from."""
        out, parts = self.args.out, [part.state_dict() for part in self._parts]
        with replaced_when_done(out / "state.pt") as path:
            torch.save({"parts": parts, "seconds": self.seconds, "losses": self.losses}, path)
        write_json(out / "losses.json", [round(loss, 4) for loss in self.losses])
        write_json(
            out / "arguments.json", {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.args).items()}
        )

    def _resume(self) -> None:
        """Load a saved state; clips are drawn again."""
        state = torch.load(self.args.out / "state.pt", weights_only=True, map_location=self.args.device)
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        self.seconds, self.losses = state["seconds"], state["losses"]
        self.rng = np.random.default_rng([self.args.seed, len(self.losses)])


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
    """Train a transformer, as the command line says."""
    parser = new_parser(description)
    add = parser.add_argument
    begin = parser.add_mutually_exclusive_group(required=True)
    begin.add_argument("--vae", type=Path, help="folder of the trained VAE, for a new checkpoint")
    begin.add_argument("--start", type=Path, help="checkpoint to continue, whose VAE and text encoder are kept")
    add("--batch", type=int, default=8, help="clips of full length, or more short ones")
    add("--first-clips", type=int, default=300, help="clips to encode before the first step")
    add("--clips", type=int, default=2500, help="clips to encode in all")
    add("--dtype", choices=["bfloat16", "float16", "float32"], default="float16", help="of the checkpoint")
    add("--bfloat16", action="store_true", help="multiply in bfloat16, for GPUs and CPUs with instructions for it")
    args = parser.parse_args()
    args.vae = args.vae or args.start / "vae"
    train(new_task, args)


def train(new_task: Callable[[argparse.Namespace], Task], args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    Training(new_task(args), args).run()
