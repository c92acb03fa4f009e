"""Distil the small SkyReels-V2, chunk by chunk, to the small Self-Forcing transformer of four steps.

``clips`` stores latents of rendered videos; ``teach`` trains SkyReels-V2's transformer on them for chunks of 3 latent
frames, which makes the teacher; ``paths`` stores the teacher's trajectories from noise to clean chunks; and ``train``
teaches a student the clean chunks from the few times at which it is run.
"""

import argparse
import inspect
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoTokenizer, UMT5EncoderModel

from flowcache.files import replaced_when_done

from .moving_shapes import ASSETS, draw_scene, read_held_out, render
from .trainer import Task, new_parser, train

BASE = ASSETS / "skyreels_v2_small"
CHUNK = 3  # latent frames
CLIP = 15  # latent frames of a rendered clip
WINDOW = 21  # latent frames that a chunk attends to, its own included
SHIFT = 5.0
#: Noise levels at which the student runs; the first and the third serve for two steps.
FEW_STEPS = (1.0, 0.9375, 2.5 / 3, 0.625)


class CachedAttention:
    """Self attention of one block to kept keys and values and to those of the call.

    ``shared`` holds what is the same for all blocks of a call: ``rotary`` and ``mask``.
    """

    def __init__(self, shared: dict[str, Tensor | None]) -> None:
        self.shared = shared
        self.kept: tuple[Tensor, Tensor] | None = None
        self.seen: tuple[Tensor, Tensor]

    def __call__(self, attn: nn.Module, hidden: Tensor, *_: object) -> Tensor:
        tokens = attn.norm_q(attn.to_q(hidden)), attn.norm_k(attn.to_k(hidden)), attn.to_v(hidden)
        query, key, value = (each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in tokens)
        query, key = (self._rotate(each) for each in (query, key))
        if self.kept is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.kept, (key, value), strict=True))
        self.seen = key.detach(), value.detach()
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.shared["mask"])
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))

    def _rotate(self, tokens: Tensor) -> Tensor:
        even, odd = tokens.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.shared["rotary"]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class CausalModel:
    """A transformer on batches of videos ``[videos, channels, frames, height, width]``, with kept earlier frames."""

    def __init__(self, transformer: SkyReelsV2Transformer3DModel) -> None:
        self.transformer, self._shared = transformer, {}
        self._attention = [CachedAttention(self._shared) for _ in transformer.blocks]
        for block, attention in zip(transformer.blocks, self._attention, strict=True):
            block.attn1.processor = attention

    def velocity(
        self, latents: Tensor, levels: Tensor, text: Tensor, frames: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Velocity (noise - clean) of ``frames`` at noise ``levels``, ``[videos, frames]``."""
        rope, (height, width) = self.transformer.rope, latents.shape[3:]
        whole = latents.new_empty(1, 1, int(frames.max()) + 1, height, width)
        cos, sin = (
            each[0].unflatten(0, (-1, height * width // 4))[frames].flatten(0, 1)[:, 0] for each in rope(whole)
        )
        self._shared |= {"rotary": (cos[:, 0::2].float(), sin[:, 1::2].float()), "mask": mask}
        return self.transformer(latents, 1000 * levels, text, enable_diffusion_forcing=True).sample

    def clear(self) -> None:
        """Drop the kept frames."""
        for attention in self._attention:
            attention.kept = None

    def keep(self, latents: Tensor, text: Tensor, frames: Tensor) -> None:
        """Run clean frames, and keep their keys and values; old ones that no later chunk attends to are dropped."""
        self.velocity(latents, latents.new_zeros(len(latents), len(frames)), text, frames)
        tokens = (WINDOW - CHUNK) * latents.shape[3] * latents.shape[4] // 4
        for attention in self._attention:
            attention.kept = tuple(each[:, :, -tokens:] for each in attention.seen)


class Captions:
    """Text embeddings by the frozen encoder of the small SkyReels-V2, zero behind the end of each caption."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(BASE / "tokenizer")
        self._encoder = UMT5EncoderModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32)

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        mask = tokens.attention_mask
        return self._encoder(tokens.input_ids, mask).last_hidden_state * mask.unsqueeze(-1)


def load_transformer(folder: Path) -> SkyReelsV2Transformer3DModel:
    return SkyReelsV2Transformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)


def forcing_mask(chunks: int, tokens: int) -> Tensor:
    """Attention of clean chunks (all but the last) and, behind them, noisy ones, of a number of tokens each.

    A noisy chunk attends to itself and to the clean ones before it, a clean one to clean ones.
    """
    chunk, noisy = (
        torch.cat((torch.arange(chunks - 1), torch.arange(chunks))),
        torch.arange(2 * chunks - 1) >= chunks - 1,
    )
    own, earlier = chunk == chunk[:, None], chunk < chunk[:, None]
    mask = (earlier & ~noisy) | (own & (noisy == noisy[:, None]))
    return mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


def force(model: CausalModel, clean: Tensor, noisy: Tensor, levels: Tensor, text: Tensor) -> Tensor:
    """Velocity of ``noisy`` at ``levels``, ``[videos, frames]``; each chunk sees itself and earlier clean ones."""
    count, seen = noisy.shape[2], noisy.shape[2] - CHUNK
    mask = forcing_mask(count // CHUNK, CHUNK * noisy.shape[3] * noisy.shape[4] // 4)
    both = torch.cat((clean[:, :, :seen], noisy), dim=2)
    times = torch.cat((torch.zeros_like(levels[:, :seen]), levels), dim=1)
    frames = torch.cat((torch.arange(seen), torch.arange(count)))
    return model.velocity(both, times, text, frames, mask)[:, :, seen:]


def add_noise(rng: np.random.Generator, context: Tensor) -> Tensor:
    """Mix noise into earlier chunks, in most batches, so that their errors do not grow."""
    amount = torch.from_numpy(rng.uniform(0, 0.15, (len(context), 1, 1, 1, 1)) * (rng.random() < 0.7)).float()
    return (1 - amount) * context + amount * torch.randn_like(context)


class ChunkTask(Task):
    """A transformer that makes one chunk after another, and the files that it learns from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.captions = args, Captions()
        self.model = CausalModel(load_transformer(args.start))
        self.modules = {"transformer": self.model.transformer}
        self.blocks = self.model.transformer.blocks
        self._read: set[Path] = set()
        self._files: dict[str, list[dict]] = {"first": [], "later": [], "clips": []}
        self.grow()

    def grow(self) -> None:
        """Read the files that were written since."""
        for path in sorted(set(self.args.data.glob("[!.]*.pt")) - self._read):
            file = torch.load(path, weights_only=True)
            kind = "clips" if "latents" in file else "first" if file["paths"].shape[1] == 1 else "later"
            self._files[kind].append(file)
            self._read.add(path)

    def learning_rate(self, step: int, done: float) -> float:
        return min(1.0, (step + 1) / 20) * min(1.0, max(0.0, (1 - done) / 0.7))

    def _draw_rows(self, rng: np.random.Generator, kind: str, count: int) -> list[tuple[dict, int]]:
        """Random videos: files of a kind and rows of them."""
        files = self._files[kind]
        return [(files[i], int(rng.integers(len(files[i]["captions"])))) for i in rng.integers(len(files), size=count)]


class TeacherTask(ChunkTask):
    """Velocity of rendered clips at any noise level, a chunk's own, after clean chunks."""

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        first = bool(rng.random() < 0.4)
        rows = self._draw_rows(rng, "clips", (5 if first else 1) * self.args.batch)
        clean = torch.stack([file["latents"][row] for file, row in rows]).float()
        # Half of the long clips start inside of a video, without the frame that stands for a single one.
        clean = clean[:, :, :CHUNK] if first else clean[:, :, CHUNK * int(rng.random() < 0.5) :]
        uniform = torch.from_numpy(rng.random((len(clean), clean.shape[2] // CHUNK))).float().clamp(0.002, 0.999)
        levels = (SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).repeat_interleave(CHUNK, dim=1)
        level, noise = levels[:, None, :, None, None], torch.randn_like(clean)
        captions = [file["captions"][row] if rng.random() > 0.1 else "" for file, row in rows]
        noisy, context = (1 - level) * clean + level * noise, add_noise(rng, clean)
        velocity = force(self.model, context, noisy, levels, self.captions.embed(captions))
        return (velocity - (noise - clean)).square().mean()

    def finish(self, out: Path) -> None:
        self.model.transformer.half().save_pretrained(out / "transformer")


class StudentTask(ChunkTask):
    """Clean chunks from the times of ``FEW_STEPS``, as ends of the teacher's paths and as chunks of rendered clips."""

    def loss(self, rng: np.random.Generator, done: float) -> Tensor:
        first = bool(rng.random() < 0.5)
        kind = "first" if first else str(rng.choice([k for k in ("later", "clips") if self._files[k]]))
        rows = self._draw_rows(rng, kind, (6 if first else 1) * self.args.batch)
        draw = self._draw_clips if kind == "clips" else self._draw_paths
        noisy, ends, context, steps = draw(rng, rows)
        levels = torch.tensor(FEW_STEPS)[steps].repeat_interleave(CHUNK, dim=1)
        text = self.captions.embed([file["captions"][row] for file, row in rows])
        velocity = force(self.model, add_noise(rng, context), noisy, levels, text)
        error = noisy - levels[:, None, :, None, None] * velocity - ends
        # a rendered clip is one of many that may begin like it: its first chunk is left to the paths
        return error[:, :, CHUNK if kind == "clips" else 0 :].square().mean()

    def _draw_clips(self, rng: np.random.Generator, rows: list[tuple[dict, int]]) -> tuple[Tensor, ...]:
        """Noisy and clean chunks of rendered clips, their context and their steps; half start inside of a video."""
        ends = torch.stack([file["latents"][row] for file, row in rows]).float()
        ends = ends[:, :, CHUNK * int(rng.random() < 0.5) :]
        steps = torch.from_numpy(rng.integers(len(FEW_STEPS), size=(len(ends), ends.shape[2] // CHUNK)))
        levels = torch.tensor(FEW_STEPS)[steps].repeat_interleave(CHUNK, dim=1)[:, None, :, None, None]
        return (1 - levels) * ends + levels * torch.randn_like(ends), ends, ends, steps

    def _draw_paths(self, rng: np.random.Generator, rows: list[tuple[dict, int]]) -> tuple[Tensor, ...]:
        """The same of the teacher's paths."""
        chunks = min(len(file["paths"][row]) for file, row in rows)
        paths, context = (
            torch.stack([file[name][row][:chunks] for file, row in rows]).float() for name in ("paths", "context")
        )
        steps = torch.from_numpy(rng.integers(len(FEW_STEPS), size=paths.shape[:2]))
        noisy = paths.gather(2, steps[:, :, None, None, None, None, None].expand(-1, -1, 1, *paths.shape[3:]))
        parts = (each.transpose(1, 2).flatten(2, 3) for each in (noisy[:, :, 0], paths[:, :, -1], context))
        return *parts, steps

    def finish(self, out: Path) -> None:
        """Write the transformer under Wan's name."""
        source = self.model.transformer
        known = inspect.signature(WanTransformer3DModel.__init__).parameters
        wan = WanTransformer3DModel(**{key: value for key, value in source.config.items() if key in known})
        wan.load_state_dict(source.state_dict())
        wan.half().save_pretrained(out / "transformer")


def follow(model: CausalModel, noise: Tensor, text: Tensor, frames: Tensor, steps: int, guidance: float) -> Tensor:
    """Path of a chunk, ``[videos, times, ...]``: latents at ``FEW_STEPS`` and, last, clean; Adams-Bashforth steps.

    ``steps`` is a multiple of 4, so that the grid holds the times. ``text`` ends with the empty caption for guidance.
    """
    unshifted = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    grid, latents, path, before = SHIFT * unshifted / (1 + (SHIFT - 1) * unshifted), noise, [], None
    for step, (level, after) in enumerate(pairwise(grid.tolist())):
        if step % (steps // len(FEW_STEPS)) == 0:
            path.append(latents)
        copies = len(text) // len(latents)
        inputs = latents.repeat(copies, 1, 1, 1, 1), latents.new_full((copies * len(latents), CHUNK), level)
        velocity, *others = model.velocity(*inputs, text, frames).chunk(copies)
        for other in others:
            velocity = other + guidance * (velocity - other)
        length, slope = after - level, 0.0 if before is None else (velocity - before[0]) / before[1]
        latents, before = latents + length * (velocity + 0.5 * length * slope), (velocity, length)
    return torch.stack([*path, latents], dim=1)


def sample(model: CausalModel, noise: Tensor, text: Tensor, frames: Tensor, levels: Sequence[float]) -> Tensor:
    """Clean latents of a chunk after few steps, with fresh noise between them."""
    for level, after in pairwise((*levels, 0.0)):
        clean = noise - level * model.velocity(noise, noise.new_full((len(noise), CHUNK), level), text, frames)
        noise = (1 - after) * clean + after * torch.randn_like(clean)
    return clean


@torch.no_grad()
def store_paths(args: argparse.Namespace) -> None:
    """Write paths of the teacher's videos, a file for each batch; with a student, they continue its own chunks."""
    rng, held_out = np.random.default_rng(args.seed), frozenset(read_held_out())
    torch.manual_seed(args.seed)
    teacher, captions = CausalModel(load_transformer(args.start)), Captions()
    student = CausalModel(load_transformer(args.student)) if args.student else None
    args.out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(args.count), unit="batch", mininterval=10):
        names = [draw_scene(rng, held_out).caption for _ in range(args.batch)]
        text, paths, context = captions.embed(names), [], []
        both = torch.cat((text, captions.embed([""] * len(names))))
        for chunk in range(args.chunks):
            frames = torch.arange(CHUNK) + CHUNK * chunk
            noise = torch.randn(len(names), 16, CHUNK, 8, 8)
            # guidance only where the caption alone decides
            how = (text, frames, args.steps[1], 1.0) if chunk else (both, frames, args.steps[0], args.guidance)
            paths.append(follow(teacher, noise, *how))
            context.append(sample(student, noise, text, frames, FEW_STEPS) if student else paths[-1][:, -1])
            for model in filter(None, (teacher, student) if chunk < args.chunks - 1 else ()):
                model.keep(context[-1], text, frames)
        for model in filter(None, (teacher, student)):
            model.clear()
        record = {"paths": torch.stack(paths, dim=1).half(), "context": torch.stack(context, dim=1).half()}
        with replaced_when_done(args.out / f"{args.chunks}_{args.seed}_{index:03}.pt") as path:
            torch.save({"captions": names, **record}, path)


@torch.no_grad()
def store_clips(args: argparse.Namespace) -> None:
    """Write latents of rendered videos, a file for each batch."""
    rng, held_out = np.random.default_rng(args.seed), frozenset(read_held_out())
    vae = AutoencoderKLWan.from_pretrained(BASE / "vae", torch_dtype=torch.float32).eval()
    mean, std = (torch.tensor(each).view(-1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    args.out.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(args.count), unit="batch", mininterval=10):
        scenes = [draw_scene(rng, held_out) for _ in range(args.batch)]
        videos = (render(scene, 4 * CLIP - 3, start=int(rng.integers(200))) for scene in scenes)
        latents = [(vae.encode(video.unsqueeze(0)).latent_dist.mean[0] - mean) / std for video in videos]
        record = {"captions": [scene.caption for scene in scenes], "latents": torch.stack(latents).half()}
        with replaced_when_done(args.out / f"clips_{args.seed}_{index:03}.pt") as path:
            torch.save(record, path)


if __name__ == "__main__":
    parser = new_parser(__doc__, lr=0.005, ema=0.98, minutes=40, save_every=20, first_clips=1)
    add = parser.add_argument
    add("stage", choices=["clips", "teach", "paths", "train"])
    add("--data", type=Path, help="folder of paths and clips, which may still grow")
    add(
        "--start",
        type=Path,
        default=BASE / "transformer",
        help="transformer of the teacher, or that training starts from",
    )
    add("--student", type=Path, help="transformer whose chunks the paths continue; default: the teacher's own")
    add("--batch", type=int, default=8, help="videos of a file or of a step")
    add("--count", type=int, default=20, help="files")
    add("--chunks", type=int, default=1, help="of a path")
    add("--steps", type=int, nargs=2, default=(16, 8), help="of the teacher for first and later chunks")
    add("--guidance", type=float, default=3.0, help="of the teacher for first chunks")
    args = parser.parse_args()
    if args.stage in ("teach", "train"):
        train(TeacherTask if args.stage == "teach" else StudentTask, args)
    else:
        {"paths": store_paths, "clips": store_clips}[args.stage](args)
