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

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import check_device
from flowcache.output import VideoPart
from flowcache.video import Frames, to_uint8
from magi1 import model_source as magi_source
from magi1.config import FRAMES
from magi1.methods import method_config as magi_method
from magi1.pipeline import MagiPipeline
from magi1.request import VideoRequest
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline, load_pipeline, resolve_model

ROOT = Path(__file__).resolve().parents[1]
MAGI_CONFIG = ROOT / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json"
PROMPT = "a red circle moves right over a dark background"
#: Chunks that are live at once in videos of a given number of chunks.
LIVE = 4


class Model:
    """A model and the video that it makes; weights are read when the first video is made.

    Attributes:
        methods: its methods, the plain one first.
        no_reuse: the method that computes every live chunk against the KV cache.
        shortest: pixel frames of the warm-up.
        prompt: the default.
    """

    methods: tuple[str, ...]
    no_reuse: str
    shortest: int
    prompt = PROMPT

    def configure(self, method: str, preset: str | None = None, **options: Any) -> FlowCacheConfig:
        """Make the configuration of a method.

        Args:
            method: one of ``methods``.
            preset: None: the default.
            options: fields of ``MethodOptions``.
        """
        raise NotImplementedError

    def stream(
        self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace, num_frames: int | None = None
    ) -> Iterator[VideoPart]:
        """Make a video; yields each chunk's frames as soon as they are clean."""
        raise NotImplementedError

    def video(
        self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace, num_frames: int | None = None
    ) -> Frames:
        """Make a video, ``[frames, height, width, 3]``."""
        parts = self.stream(prompt, seed, config, trace, num_frames)
        return to_uint8(torch.cat([part.frames for part in parts], dim=1))

    def warm_up(self, config: FlowCacheConfig) -> None:
        """Make a short video, so that no measured one pays for first calls."""
        self.video(PROMPT, 0, config, Trace(), self.shortest)


class SkyReels(Model):
    """SkyReels-V2.

    Args:
        checkpoint: as ``resolve_model`` takes it.
        device: where to run.
        video: fields of ``VideoSettings``; None as it suits the model.
    """

    methods, no_reuse, shortest = ("vanilla", "causal", "teacache", "flowcache"), "causal", 21

    def __init__(self, checkpoint: str, device: str, **video: Any) -> None:
        self.source = resolve_model(checkpoint, device)
        self.prompt = self.source.defaults["prompt"]
        self.settings = self.source.video_settings(**{"ar_step": 5, "causal_block_size": 5, **video})
        self._device = device

    @cached_property
    def pipeline(self) -> FlowCacheSkyReelsV2Pipeline:
        pipeline = load_pipeline(self.source, self._device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure(self, method: str, preset: str | None = None, **options: Any) -> FlowCacheConfig:
        return self.source.method_config(method, preset, **options)

    def stream(
        self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace, num_frames: int | None = None
    ) -> Iterator[VideoPart]:
        settings = replace(self.settings, seed=seed, num_frames=num_frames or self.settings.num_frames)
        return self.pipeline.stream(prompt, settings=settings, cache=config, trace=trace)


class Magi(Model):
    """MAGI-1.

    Args:
        checkpoint: ``auto``, ``small``, or ``official`` for the weights that the configuration names.
        device: where to run.
        config_file: configuration in three sections.
        video: keys of the configuration; None as it has them.
    """

    methods, no_reuse, shortest = ("vanilla", "teacache", "flowcache"), "vanilla", 24

    def __init__(self, checkpoint: str, device: str, config_file: Path = MAGI_CONFIG, **video: Any) -> None:
        keys = {name: value for name, value in video.items() if value is not None}
        self.source = magi_source.resolve_model(config_file, keys, checkpoint, device)
        self._device = device

    @cached_property
    def pipeline(self) -> MagiPipeline:
        pipeline = magi_source.load_pipeline(self.source, self._device)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def configure(self, method: str, preset: str | None = None, **options: Any) -> FlowCacheConfig:
        options.pop("kv_range", None)  # a chunk of MAGI-1 sees what its configuration says
        return magi_method(method, preset=preset, **options)

    def stream(
        self, prompt: str, seed: int, config: FlowCacheConfig, trace: Trace, num_frames: int | None = None
    ) -> Iterator[VideoPart]:
        runtime = self.source.config.runtime_config
        runtime = replace(runtime, seed=seed, num_frames=num_frames or runtime.num_frames)
        request = VideoRequest(
            prompt=prompt, config=replace(self.source.config, runtime_config=runtime), cache=config
        )
        return self.pipeline.stream(request, trace)


MODELS = {"skyreels": SkyReels, "magi": Magi}


def load_model(args: Namespace, **defaults: Any) -> Model:
    """Find the model that the flags name, for a video of the flags' frames and steps.

    Args:
        args: of a parser with ``add_model_flags``.
        defaults: settings of the video by the names of SkyReels-V2, for this model alone.

    Raises:
        ValueError: one sentence that names the flag.
    """
    check_device(args.device)
    size = {name: getattr(args, name, None) for name in ("height", "width")}
    if args.model == "magi":
        video = {"num_frames": args.num_frames or 96, "num_steps": args.steps or 64}
        video |= {"video_size_h": size["height"], "video_size_w": size["width"]}
        return Magi(args.checkpoint, args.device, args.config_file, **video)
    frames = args.num_frames or 97
    window = {"overlap_history": 17, "addnoise_condition": 20}
    video = {"num_frames": frames, "inference_steps": args.steps or 50, **size, **window, **defaults}
    return SkyReels(args.checkpoint, args.device, **video)


def load_chunk_model(args: Namespace, chunks: int) -> Model:
    """Find the model for videos of that many chunks, ``LIVE`` of them live at once, each seeing all before it."""
    check_device(args.device)
    if args.steps % LIVE:
        raise ValueError(f"steps: expected a multiple of {LIVE}, got {args.steps}.")
    if args.model == "magi":
        keys = {"num_steps": args.steps, "window_size": LIVE, "noise2clean_kvrange": []}
        keys |= {"clean_chunk_kvrange": -1, "num_frames": FRAMES * 6 * chunks}
        return Magi(args.checkpoint, args.device, args.config_file, **keys)
    video = {"num_frames": 4 * 5 * chunks - 3, "inference_steps": args.steps, "ar_step": args.steps // LIVE}
    return SkyReels(args.checkpoint, args.device, streaming=True, **video)


def add_model_flags(parser: ArgumentParser, frames: str = "") -> None:
    """Add the flags that ``load_model`` reads; ``frames``: default lengths to show, empty: no such flag."""
    add = parser.add_argument
    add("--model", "--family", choices=MODELS, default="skyreels", help="default: skyreels")
    add(
        "--checkpoint",
        "--model_id",
        default="auto",
        help="small, official or, for skyreels, a folder or Hub id",
    )
    add("--config_file", type=Path, default=MAGI_CONFIG, help="configuration of MAGI-1")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    if frames:
        add("--num_frames", "--frames", type=int, help=f"of the video (default: {frames})")
        add("--steps", type=int, help="denoising steps (default: 50; magi: 64)")
