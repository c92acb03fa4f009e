"""A model, ready to make videos of a caption with any configuration of the cache.

All use of the models' loading, settings and methods by the research scripts is in this file.
"""

from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flowcache import FlowCacheConfig, Trace
from flowcache.adapter import Adapter, Start
from flowcache.command_line import Parser, check_device
from flowcache.state import VideoPart
from flowcache.video import Frames, to_uint8
from flowcache.wan.sizes import latent_frames
from magi1 import model_source as magi_source
from magi1.adapter import Magi1
from magi1.config import FRAMES
from self_forcing import resolve_model as resolve_self_forcing
from self_forcing.adapter import SelfForcing
from self_forcing.settings import make_settings
from skyreels_v2 import resolve_model
from skyreels_v2.adapter import SkyReelsV2

from .compare import Run, compare
from .train_small.moving_shapes import read_held_out

MAGI_CONFIG = Path(__file__).resolve().parents[1] / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json"
PROMPT = "a red circle moves right over a dark background"
#: Chunks that are live at once in videos of a given number of chunks.
LIVE = 4


@dataclass
class Model:
    """A model and the video that it makes; weights are read when they are first used."""

    adapter: Adapter
    device: str

    @property
    def no_reuse(self) -> str:
        """The method that computes every live chunk against the KV cache."""
        return "causal" if "causal" in self.adapter.traits.methods else "vanilla"

    @cached_property
    def pipeline(self) -> Any:
        pipeline = self.adapter.load(self.device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure(self, method: str, preset: str | None = None, **options: Any) -> FlowCacheConfig:
        """Make the configuration of a method; options that the model lacks are left out."""
        known = {name: value for name, value in options.items() if name not in self.adapter.lacks}
        return self.adapter.configure(self.adapter.traits.translate({"method": method, "preset": preset, **known}))

    def stream(self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace) -> Iterator[VideoPart]:
        """Make a video; yields each chunk's frames as soon as they are clean."""
        adapter = self.adapter.with_video(seed=seed)
        return adapter.stream(self.pipeline, prompt, Start(), config, trace, None)

    def video(
        self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace, last: int | None = None
    ) -> tuple[Frames, Trace]:
        """Make a video, ``[frames, height, width, 3]``, or its ``last`` chunks."""
        parts = deque(self.stream(prompt, seed, config, trace), maxlen=last)
        return to_uint8(torch.cat([part.frames for part in parts], dim=1)), trace

    def warm_up(self, config: FlowCacheConfig) -> None:
        """Make the first chunk, so that no measured video pays for first calls."""
        next(self.stream(PROMPT, 0, config, Trace()))


def find_model(args: Namespace, **video: Any) -> Model:
    """Find the model for a video of the flags' frames and steps; ``video``: more settings of SkyReels-V2.

    ``self_forcing`` has four steps, ``self_forcing_50`` those of the flags, with guidance.
    """
    size = {name: getattr(args, name, None) for name in ("height", "width")}
    if args.model == "magi":
        keys = {"num_frames": args.num_frames or 96, "num_steps": args.steps or 64}
        return _resolve(args, video_size_h=size["height"], video_size_w=size["width"], **keys)
    if args.model.startswith("self_forcing"):
        return _resolve(args, num_output_frames=latent_frames(args.num_frames or 81), **size)
    length = {"num_frames": args.num_frames or 97, "inference_steps": args.steps or 50}
    window = {"ar_step": 5, "overlap_history": 17, "addnoise_condition": 20}
    return _resolve(args, **(window | length | size | video))


def find_chunk_model(args: Namespace, chunks: int) -> Model:
    """Find the model for videos of that many chunks, each seeing all before it; ``LIVE`` of a staircase are live."""
    if args.steps % LIVE:
        raise ValueError(f"steps: expected a multiple of {LIVE}, got {args.steps}.")
    if args.model == "magi":
        ranges = {"noise2clean_kvrange": [], "clean_chunk_kvrange": -1}
        return _resolve(args, num_frames=FRAMES * 6 * chunks, num_steps=args.steps, window_size=LIVE, **ranges)
    if args.model.startswith("self_forcing"):
        return _resolve(args, num_output_frames=3 * chunks)
    lag = {"ar_step": args.steps // LIVE, "inference_steps": args.steps}
    return _resolve(args, num_frames=4 * 5 * chunks - 3, streaming=True, **lag)


def _resolve(args: Namespace, **video: Any) -> Model:
    check_device(args.device)
    if args.model == "magi":
        keys = {name: value for name, value in video.items() if value is not None}
        config, model = args.config_file, args.checkpoint
        if Path(model).is_dir():  # as training writes it
            keys |= {"load": model, "vae_pretrained": f"{model}/vae", "t5_pretrained": f"{model}/t5"}
            config, model = Path(model) / "config.json", "official"
        magi = magi_source.resolve_model(config, keys, model, args.device)
        return Model(Magi1(source=magi), args.device)
    if args.model.startswith("self_forcing"):
        source = resolve_self_forcing(args.checkpoint, args.device)
        many = {} if args.model == "self_forcing" else {"denoising_step_list": (), "sampling_steps": args.steps or 50}
        return Model(SelfForcing(source=source, video=make_settings(source.defaults, **many, **video)), args.device)
    source = resolve_model(args.checkpoint, args.device)
    return Model(SkyReelsV2(source=source, video=source.video_settings(causal_block_size=5, **video)), args.device)


def compare_configs(
    model: Model,
    configs: Mapping[str, FlowCacheConfig],
    reference: str,
    captions: Sequence[int],
    args: Namespace,
    last: int | None = None,
    **sheet: Any,
) -> list[Run]:
    """``compare`` configurations on held-out captions, by number; an interrupted measurement continues.

    ``last``: chunks of each video to compare; ``sheet``: further arguments of ``compare``.
    """
    prompts = read_held_out()
    if max(captions) >= len(prompts):
        raise ValueError(f"captions: expected at most {len(prompts)}, got {args.captions}.")
    video = {name: str(vars(args).get(name)) for name in ("model", "checkpoint", "num_frames", "chunks", "steps")}
    settings = {name: {**video, "cache": config.as_dict(args.steps)} for name, config in configs.items()}

    def make(name: str, seed: int) -> tuple[Frames, Trace]:
        return model.video(prompts[seed], seed, configs[name], Trace(method=name), last)

    return compare(make, list(configs), captions, [reference], args.outdir, settings, **sheet)


def new_parser(
    description: str,
    name: str,
    frames: str = "",
    models: Sequence[str] = ("skyreels", "magi"),
    steps: str = "50; magi: 64",
) -> ArgumentParser:
    """A parser with ``--outdir`` and the flags that ``find_model`` reads.

    Args:
        name: folder below ``outputs``; ``MODEL`` in it is that of ``--model``.
        frames, steps: defaults to show; without frames, the script chooses both.
        models: to choose from, the default first; none: the script does not choose.
    """
    parser, default = Parser(description), f"outputs/{name}"
    add = parser.add_argument
    add("--outdir", type=Path, default=Path(default), help=f"default: {default}")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    if models:
        add("--model", "--family", choices=models, default=models[0], help=f"default: {models[0]}")
        weights = "small, official (magi), a folder, or Hub id (skyreels) (default: auto)"
        add("--checkpoint", "--model_id", default="auto", help=weights)
        add("--config_file", type=Path, default=MAGI_CONFIG, help="configuration of MAGI-1")
    if frames:
        add("--num_frames", "--frames", type=int, help=f"of the video (default: {frames})")
        add("--steps", type=int, help=f"denoising steps (default: {steps})")
    return parser
