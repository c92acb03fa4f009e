"""The Python face that all pipelines share: ``enable``, diffusers' arguments, and the videos of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .arguments import check_type
from .config import FlowCacheConfig
from .methods import ModelTraits, make_config
from .output import VideoPart
from .trace import Trace
from .video import VideoWriter

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

#: A generator for all videos, or one for each.
Generators = torch.Generator | list[torch.Generator]

#: Index of the prompt, seed of the noise and trace to fill in; yields the parts of one video.
Stream = Callable[[int, int, Trace], Iterable[VideoPart]]


class VideoTrace(Trace):
    """A trace that draws itself."""

    def reuse_map(self, path: str | Path) -> None:
        """Save a PNG of which chunk was computed or reused at each step."""
        from .plots import reuse_map  # matplotlib takes long to import

        reuse_map(self, path)


@dataclass(frozen=True)
class VideoOutput:
    """Videos of one call, in the order of the prompts; the videos of a prompt follow each other.

    Attributes:
        frames: as ``output_type`` says, of all videos: ``np`` an array ``[videos, frames, height, width, 3]``
            in [0, 1], ``pt`` a tensor ``[videos, frames, 3, height, width]`` in [0, 1], ``pil`` a list of
            images for each video, ``latent`` the latents.
        latents: normalised, ``[videos, channels, frames', h, w]``, fp32.
        traces: what happened, one for each video.
        fps: frames per second.
    """

    frames: np.ndarray | Tensor | list[list[Image.Image]]
    latents: Tensor
    traces: list[VideoTrace]
    fps: float

    @property
    def trace(self) -> VideoTrace:
        """Trace of the first video."""
        return self.traces[0]

    def save(self, path: str | Path, fps: float | None = None, index: int = 0) -> None:
        """Write one video as mp4.

        Args:
            path: of the file.
            fps: frames per second; None: those of the settings.
            index: of the video.

        Raises:
            ValueError: the call returned latents.
        """
        frames: Any = self.frames[index]
        if self.frames is self.latents:
            raise ValueError("output_type: expected np, pt or pil to save a video, got latent.")
        if isinstance(frames, Tensor):
            frames = frames.permute(0, 2, 3, 1).cpu().numpy()
        frames = np.stack([np.asarray(frame) for frame in frames])
        if frames.dtype != np.uint8:
            frames = (255 * frames).round().astype(np.uint8)
        with VideoWriter(Path(path), fps or self.fps) as writer:
            writer.write(frames)


class FlowCachePipeline:
    """Mixin of diffusers pipelines that run with FlowCache."""

    #: Configuration of calls that pass none; ``enable`` sets it.
    flowcache_config: FlowCacheConfig = FlowCacheConfig()
    #: Name of the method, for traces.
    flowcache_method: str = "flowcache"

    @property
    def flowcache_traits(self) -> ModelTraits:
        """How the methods differ on this model; each model implements it."""
        raise NotImplementedError


def enable(
    pipe: FlowCachePipeline,
    preset: str | None = None,
    kv_budget: int | None = None,
    *,
    method: str = "flowcache",
    config: FlowCacheConfig | None = None,
    **options: Any,
) -> FlowCacheConfig:
    """Choose how a pipeline runs; holds for all later calls.

    Args:
        pipe: a FlowCache pipeline; ``from_pipe`` makes one of a pipeline of diffusers.
        preset: ``quality``, ``balanced``, ``fast``, ``turbo``, ``paper-slow`` or ``paper-fast``; None: fast.
        kv_budget: chunks' worth of tokens that clean chunks keep in the KV cache; None: all.
        method: ``vanilla``, ``causal``, ``teacache`` or ``flowcache``.
        config: a configuration of your own in place of all other options.
        **options: further fields of ``flowcache.methods.MethodOptions``: ``policy``, ``forecast``,
            ``kv_bits``, ``kv_offload``, ...

    Returns:
        The configuration, which ``pipe.flowcache_config`` holds from now on.

    Raises:
        TypeError: ``pipe`` is no FlowCache pipeline, or an option is unknown.
        ValueError: an option is out of range or the method does not have it; it is named.
    """
    hint = "; make one with from_pipe of FlowCacheSkyReelsV2Pipeline or MagiPipeline"
    check_type("pipe", pipe, FlowCachePipeline, hint)
    if config is None:
        traits = pipe.flowcache_traits
        chosen = traits.translate({"method": method, "preset": preset, "budget": kv_budget, **options})
        config = make_config(chosen, traits)
    elif preset is not None or kv_budget is not None or options or method != "flowcache":
        raise ValueError("config: expected no other option beside it; leave them out.")
    check_type("config", config, FlowCacheConfig)
    pipe.flowcache_config, pipe.flowcache_method = config, method
    return config


def disable(pipe: FlowCachePipeline) -> FlowCacheConfig:
    """Run a pipeline as the original model does: the whole window at every step."""
    return enable(pipe, method="vanilla")


def join(parts: Iterable[VideoPart]) -> Tensor:
    """Frames of all parts, ``[3, frames, height, width]`` in [-1, 1]."""
    return torch.cat([part.frames for part in parts], dim=1)


def split_prompts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Arguments for one prompt each; a single negative prompt or embedding holds for all.

    Raises:
        ValueError: not exactly one of ``prompt`` and ``prompt_embeds`` is given, or counts differ.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("prompt: expected either prompt or prompt_embeds; give one of them.")
    texts: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
    for name, embeds in (
        ("prompt_embeds", prompt_embeds),
        ("negative_prompt_embeds", negative_prompt_embeds),
    ):
        if embeds is not None:
            check_type(name, embeds, Tensor)
            if embeds.ndim != 3 or not len(embeds):
                raise ValueError(f"{name}: expected [prompts, tokens, width], got {list(embeds.shape)}.")
            texts[name] = list(embeds) if len(embeds) > 1 or name == "prompt_embeds" else embeds[0]
    first = texts["prompt_embeds"] if prompt is None else prompt
    count = len(first) if isinstance(first, list) else 1
    if not count:
        raise ValueError("prompt: expected at least one prompt, got an empty list.")
    for name, values in texts.items():
        if isinstance(values, list) and len(values) != count:
            raise ValueError(f"{name}: expected one for each of {count} prompts, got {len(values)}.")
    return [
        {name: values[i] if isinstance(values, list) else values for name, values in texts.items()}
        for i in range(count)
    ]


def draw_seeds(generator: Generators | None, count: int, seed: int) -> Iterator[int]:
    """Seed of each video: the next draw of its generator, or ``seed``, ``seed + 1``, ... without one.

    Raises:
        ValueError: the number of generators is not the number of videos.
    """
    if isinstance(generator, list | tuple) and len(generator) != count:
        raise ValueError(f"generator: expected one for each of {count} videos, got {len(generator)}.")
    for index in range(count):
        own = generator[index] if isinstance(generator, list | tuple) else generator
        if own is None:
            yield seed + index
        else:
            check_type("generator", own, torch.Generator)
            yield int(torch.randint(2**62, (), generator=own, device=own.device))


def make_videos(
    stream: Stream,
    num_prompts: int,
    fps: float,
    *,
    num_videos_per_prompt: int = 1,
    generator: Generators | None = None,
    seed: int = 0,
    output_type: str = "np",
    trace: Trace | None = None,
    method: str = "",
) -> VideoOutput:
    """Make the videos of one call, one after another.

    Args:
        stream: makes one video.
        num_prompts: prompts, whose indices ``stream`` gets.
        fps: frames per second.
        num_videos_per_prompt, generator, output_type: as in diffusers.
        seed: of the first video without a generator.
        trace: filled in with what happens; for a single video.
        method: name for the traces.

    Raises:
        ValueError: an argument is out of range; it is named.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type: expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    if num_videos_per_prompt < 1:
        raise ValueError(f"num_videos_per_prompt: expected at least 1, got {num_videos_per_prompt}.")
    count = num_prompts * num_videos_per_prompt
    if trace is not None and count > 1:
        raise ValueError(f"trace: expected a single video, got {count}; read the traces of the output.")
    frames, latents, traces = [], [], []
    for index, own_seed in enumerate(list(draw_seeds(generator, count, seed))):
        own = Trace(method=method) if trace is None else trace
        video, clean = [], []
        for part in stream(index // num_videos_per_prompt, own_seed, own):
            # without part.state, which would keep the stream alive
            video.append(part.frames)
            clean.append(part.latents)
        frames.append(torch.cat(video, dim=1))
        latents.append(torch.cat(clean, dim=1))
        traces.append(VideoTrace(**vars(own)))
    stacked = torch.stack(latents)
    if output_type == "latent":
        return VideoOutput(stacked, stacked, traces, fps)
    return VideoOutput(_convert(torch.stack(frames), output_type), stacked, traces, fps)


def _convert(videos: Tensor, output_type: str) -> np.ndarray | Tensor | list[list[Image.Image]]:
    """Convert ``[videos, 3, frames, height, width]`` in [-1, 1] to the layout of ``output_type``."""
    shown = (videos.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return shown.transpose(1, 2)
    array = shown.permute(0, 2, 3, 4, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [[Image.fromarray(frame) for frame in video] for video in (255 * array).round().astype(np.uint8)]
