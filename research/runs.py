"""Either model, ready to make videos of a caption with any configuration of the cache.

All use of the models' loading, settings and methods by the research scripts is in this file.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import magi1
from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import check_device
from flowcache.output import VideoPart
from flowcache.video import Frames, to_uint8
from magi1.config import FRAMES
from magi1.methods import METHODS as MAGI_METHODS
from magi1.methods import method_config as magi_method_config
from skyreels_v2 import METHODS, load_pipeline, resolve_model

ROOT = Path(__file__).resolve().parents[1]
MAGI_CONFIG = ROOT / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json"
PROMPT = "a red circle moves right over a dark background"
#: Chunks that are live at once in videos of a given number of chunks.
LIVE = 4


class SkyReels:
    """SkyReels-V2 and the video that it makes; weights are read when they are first used.

    Attributes:
        methods: its methods, the plain one first.
        no_reuse: the method that computes every live chunk against the KV cache.
        prompt: the default.
    """

    methods, no_reuse, prompt = METHODS, "causal", PROMPT

    def __init__(self, args: Namespace, **video: Any) -> None:
        self._device, self.source = args.device, resolve_model(args.checkpoint, args.device)
        self.prompt = self.source.defaults["prompt"]
        self.settings = self.source.video_settings(**{"ar_step": 5, "causal_block_size": 5, **video})

    @cached_property
    def pipeline(self) -> Any:
        """Our pipeline."""
        pipeline = load_pipeline(self.source, self._device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure(self, method: str, preset: str | None = None, **options: Any) -> FlowCacheConfig:
        """Make the configuration of a method; ``options`` are fields of ``MethodOptions``."""
        return self.source.method_config(method, preset, **options)

    def stream(self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace) -> Iterator[VideoPart]:
        """Make a video; yields each chunk's frames as soon as they are clean."""
        settings = replace(self.settings, seed=seed)
        return self.pipeline.stream(prompt, settings=settings, cache=config, trace=trace)

    def video(self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace) -> Frames:
        """Make a video, ``[frames, height, width, 3]``."""
        parts = self.stream(prompt, seed, config, trace)
        return to_uint8(torch.cat([part.frames for part in parts], dim=1))

    def warm_up(self, config: FlowCacheConfig) -> None:
        """Make the first chunk, so that no measured video pays for first calls."""
        next(self.stream(PROMPT, 0, config, Trace()))


class Magi(SkyReels):
    """The same for MAGI-1."""

    methods, no_reuse = MAGI_METHODS, "vanilla"

    def __init__(self, args: Namespace, **video: Any) -> None:
        keys = {name: value for name, value in video.items() if value is not None}
        self.source = magi1.resolve_model(args.config_file, keys, args.checkpoint, args.device)
        self._device = args.device

    @cached_property
    def pipeline(self) -> Any:
        pipeline = magi1.load_pipeline(self.source, self._device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure(self, method: str, preset: str | None = None, **options: Any) -> FlowCacheConfig:
        options.pop("kv_range", None)  # chunks of MAGI-1 see what its configuration says
        return magi_method_config(method, preset=preset, **options)

    def stream(self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace) -> Iterator[VideoPart]:
        return self.pipeline.stream(prompt, self.source.config, config, trace=trace, seed=seed)


Model = SkyReels
MODELS = {"skyreels": SkyReels, "magi": Magi}


def find_model(args: Namespace, **video: Any) -> Model:
    """Find the model that the flags name, for a video of the flags' frames and steps.

    Args:
        args: of a parser with ``add_model_flags``.
        video: further settings, of SkyReels-V2 alone.

    Raises:
        ValueError: one sentence that names the flag.
    """
    check_device(args.device)
    height, width = (getattr(args, name, None) for name in ("height", "width"))
    if args.model == "magi":
        keys = {"num_frames": args.num_frames or 96, "num_steps": args.steps or 64}
        return Magi(args, video_size_h=height, video_size_w=width, **keys)
    window = {"overlap_history": 17, "addnoise_condition": 20, "height": height, "width": width}
    length = {"num_frames": args.num_frames or 97, "inference_steps": args.steps or 50}
    return SkyReels(args, **window, **length, **video)


def find_chunk_model(args: Namespace, chunks: int) -> Model:
    """Find the model for videos of that many chunks, ``LIVE`` of them live, each seeing all before it."""
    check_device(args.device)
    if args.steps % LIVE:
        raise ValueError(f"steps: expected a multiple of {LIVE}, got {args.steps}.")
    if args.model == "magi":
        ranges = {"noise2clean_kvrange": [], "clean_chunk_kvrange": -1}
        frames = FRAMES * 6 * chunks
        return Magi(args, num_frames=frames, num_steps=args.steps, window_size=LIVE, **ranges)
    lag = {"ar_step": args.steps // LIVE, "inference_steps": args.steps}
    return SkyReels(args, num_frames=4 * 5 * chunks - 3, streaming=True, **lag)


def add_model_flags(parser: ArgumentParser, frames: str = "") -> None:
    """Add the flags that ``find_model`` reads; ``frames``: default lengths to show, empty: no such flag."""
    add = parser.add_argument
    add("--model", "--family", choices=MODELS, default="skyreels", help="default: skyreels")
    weights = "small, official (magi), a folder or Hub id (skyreels) (default: auto)"
    add("--checkpoint", "--model_id", default="auto", help=weights)
    add("--config_file", type=Path, default=MAGI_CONFIG, help="configuration of MAGI-1")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    if frames:
        add("--num_frames", "--frames", type=int, help=f"of the video (default: {frames})")
        add("--steps", type=int, help="denoising steps (default: 50; magi: 64)")
