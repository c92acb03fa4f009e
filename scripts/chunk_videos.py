"""Videos of so many chunks, made with either model; shared by the scripts that measure the cache."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import torch
from interleaved import positive
from small_models import MAGI_CONFIG
from torch import Tensor

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import check_device
from flowcache.output import VideoPart
from flowcache.video import Frames, to_uint8
from magi1 import model_source as magi_source
from magi1.config import FRAMES, FlowCacheOptions
from magi1.methods import method_config as magi_method_config
from magi1.request import VideoRequest
from skyreels_v2 import FlowCacheSkyReelsV2Pipeline, load_pipeline, resolve_model
from skyreels_v2.codec import VideoCodec
from skyreels_v2.settings import pixel_frames

PROMPT = "a red circle moves right over a dark background"
#: Chunks that are live at once: a chunk starts when the one before it has made one step in four.
LIVE = 4


def add_video_flags(parser: ArgumentParser, steps: int) -> None:
    """Flags of every script that makes such videos; ``steps`` is the default of its own."""
    add = parser.add_argument
    add("--model", choices=MODELS, default="skyreels")
    add("--steps", type=positive, default=steps, help=f"denoising steps, a multiple of {LIVE}")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def checked_flags(parser: ArgumentParser) -> Namespace:
    """Read the flags; refuse a device or steps that cannot be.

    Raises:
        ValueError: one sentence that names the argument.
    """
    args = parser.parse_args()
    check_device(args.device)
    if args.steps % LIVE:
        raise ValueError(f"steps must be a multiple of {LIVE}, got {args.steps}.")
    return args


class ChunkVideos(Protocol):
    """Makes videos of one length, in chunks, with one model, which is loaded when it is made.

    Args:
        chunks: of each video.
        steps: of each chunk, a multiple of ``LIVE``.
        device: where to run.
    """

    def __init__(self, chunks: int, steps: int, device: str) -> None: ...

    def cache(self, preset: str, budget: int | None = None, bits: int | None = None) -> FlowCacheConfig:
        """Settings of the cache.

        Args:
            preset: of FlowCache; ``none``: nothing is reused.
            budget: chunks' worth of tokens that finished chunks keep; None: a chunk sees all before it.
            bits: in which finished chunks are kept; None: as the model makes them.
        """
        ...

    def stream(
        self, cache: FlowCacheConfig, trace: Trace, prompt: str = PROMPT, seed: int = 0
    ) -> Iterator[VideoPart]:
        """Make a video; gives each chunk's frames when they are clean."""
        ...

    def last_frames(self, cache: FlowCacheConfig, trace: Trace, prompt: str, seed: int) -> Frames:
        """Make a video; the frames of its last ``LIVE`` chunks, ``[frames, height, width, 3]``."""
        ...


class Undecoded(FlowCacheSkyReelsV2Pipeline):
    """Streams latents and leaves the frames out: decoding takes longer than making them in few steps."""

    def _decoded(self, position: object, clean: Iterable[Tensor], trace: Trace) -> Iterator[VideoPart]:
        for latents in clean:
            yield VideoPart(latents.new_empty(3, 0, 0, 0), latents.clone())


class SkyReelsVideos:
    """Implements ``ChunkVideos``: streamed videos of SkyReels-V2."""

    def __init__(self, chunks: int, steps: int, device: str) -> None:
        self._source, self._chunks = resolve_model("auto", device), chunks
        self._settings = self._source.video_settings(
            num_frames=4 * self._source.defaults["causal_block_size"] * chunks - 3,
            streaming=True,
            inference_steps=steps,
            ar_step=steps // LIVE,
        )
        self._pipeline = load_pipeline(self._source, device)
        self._undecoded = Undecoded(**self._pipeline.components)
        self._undecoded.default_negative_prompt = self._pipeline.default_negative_prompt
        for pipeline in (self._pipeline, self._undecoded):
            pipeline.set_progress_bar_config(disable=True)

    def cache(self, preset: str, budget: int | None = None, bits: int | None = None) -> FlowCacheConfig:
        limit = {"kvrange": self._chunks} if budget is None else {"budget_block": budget}
        if preset == "none":
            return self._source.method_config("causal", kv_bits=bits, **limit)
        return self._source.method_config("flowcache", preset, kv_bits=bits, **limit)

    def stream(
        self, cache: FlowCacheConfig, trace: Trace, prompt: str = PROMPT, seed: int = 0
    ) -> Iterator[VideoPart]:
        settings = replace(self._settings, seed=seed)
        return self._pipeline.stream(prompt, settings=settings, cache=cache, trace=trace)

    def last_frames(self, cache: FlowCacheConfig, trace: Trace, prompt: str, seed: int) -> Frames:
        settings = replace(self._settings, seed=seed)
        parts = self._undecoded.stream(prompt, settings=settings, cache=cache, trace=trace)
        # The decoder looks back; what it makes of the chunk before is thrown away.
        first, *last = (part.latents for part in deque(parts, maxlen=LIVE + 1))
        with torch.no_grad():
            frames = VideoCodec(self._pipeline.vae).decode(torch.cat([first, *last], dim=1))
        return to_uint8(frames[:, pixel_frames(first.shape[1]) :])


class MagiVideos:
    """Implements ``ChunkVideos``: videos of MAGI-1."""

    def __init__(self, chunks: int, steps: int, device: str) -> None:
        overrides = {"num_steps": steps, "window_size": LIVE}
        overrides |= {"noise2clean_kvrange": [], "clean_chunk_kvrange": -1}
        source = magi_source.resolve_model(MAGI_CONFIG, overrides, "auto", device)
        runtime = source.config.runtime_config
        runtime = replace(runtime, num_frames=FRAMES * runtime.chunk_width * chunks)
        self._config = replace(source.config, runtime_config=runtime)
        self._pipeline = magi_source.load_pipeline(source, device)
        self._pipeline.set_progress_bar_config(disable=True)

    def cache(self, preset: str, budget: int | None = None, bits: int | None = None) -> FlowCacheConfig:
        limit = {} if budget is None else {"total_cache_chunk_nums": LIVE + budget}
        options = FlowCacheOptions(compress_kv_cache=budget is not None, kv_bits=bits, **limit)
        if preset == "none":
            return magi_method_config("vanilla", options)
        return magi_method_config("flowcache", options, preset=preset)

    def stream(
        self, cache: FlowCacheConfig, trace: Trace, prompt: str = PROMPT, seed: int = 0
    ) -> Iterator[VideoPart]:
        config = replace(self._config, runtime_config=replace(self._config.runtime_config, seed=seed))
        return self._pipeline.stream(VideoRequest(prompt=prompt, config=config, cache=cache), trace)

    def last_frames(self, cache: FlowCacheConfig, trace: Trace, prompt: str, seed: int) -> Frames:
        parts = deque(self.stream(cache, trace, prompt, seed), maxlen=LIVE)
        return to_uint8(torch.cat([part.frames for part in parts], dim=1))


MODELS: dict[str, type[ChunkVideos]] = {"skyreels": SkyReelsVideos, "magi": MagiVideos}
