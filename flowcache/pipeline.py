"""The Python face that all pipelines share: ``enable``, diffusers' arguments, and the videos of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .arguments import check_type
from .config import FlowCacheConfig
from .methods import ModelTraits, make_config
from .prompts import PromptWarnings, check_prompt, find_losses
from .state import VideoPart
from .trace import Trace
from .video import VideoWriter

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

Generators = torch.Generator | list[torch.Generator]

#: Pipeline, step, timestep of the youngest live chunk, and ``{"latents": ...}`` of the live chunks.
StepCallback = Callable[["FlowCachePipeline", int, float, dict[str, Tensor]], Any]


class VideoTrace(Trace):
    """A trace that draws itself."""

    def reuse_map(self, path: str | Path) -> None:
        """Save a PNG of which chunk was computed or reused at each step."""
        from .plots import reuse_map  # matplotlib takes long to import

        reuse_map(self, path)


@dataclass(frozen=True)
class VideoOutput:
    """Videos of one call, in the order of the prompts; those of one prompt follow each other.

    Attributes:
        frames: by ``output_type``: ``np`` an array ``[videos, frames, height, width, 3]`` in [0, 1], ``pt`` a
            tensor ``[videos, frames, 3, height, width]``, ``pil`` lists of images, ``latent`` the latents.
        latents: normalised, ``[videos, channels, frames', h, w]``, fp32.
        traces: records of the runs, one for each video.
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
        """Write the video of an index as mp4; ``fps`` None: that of the settings."""
        frames: Any = self.frames[index]
        if self.frames is self.latents:
            raise ValueError("output_type: expected np, pt or pil to save a video, got latent.")
        if isinstance(frames, Tensor):
            frames = frames.permute(0, 2, 3, 1).cpu().numpy()
        frames = np.stack([np.asarray(frame) for frame in frames])
        with VideoWriter(Path(path), fps or self.fps) as writer:
            writer.write(frames if frames.dtype == np.uint8 else _to_pixels(frames))


class FlowCachePipeline:
    """Mixin of diffusers pipelines; ``enable`` sets the configuration of calls that pass none.

    A model has ``stream``; ``prepare``, which makes its arguments, frames per second and a seed of a call's
    options; and ``clean_prompt``, which gives the part of a prompt that is tokenized.
    """

    flowcache_config: FlowCacheConfig = FlowCacheConfig()
    flowcache_method: str = "flowcache"
    flowcache_traits: ModelTraits

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **named: Any
    ) -> FlowCachePipeline:
        """Load as diffusers does, which calls ``torch_dtype`` ``dtype`` now."""
        return super().from_pretrained(folder, **{"dtype": torch_dtype, **named})

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        cache: FlowCacheConfig | None = None,
        trace: Trace | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> VideoOutput:
        """Generate videos; diffusers' arguments have diffusers' meaning.

        Args:
            prompt, negative_prompt: one or a list; None: the model's default negative prompt.
            cache: configuration of FlowCache; None: that of ``enable``.
            trace: filled in with what happens in a single video.
            generator: its next draw is the seed of a video; without one, seeds count up from ``seed``.
            prompt_embeds, negative_prompt_embeds: ``[prompts, tokens, width]`` in place of prompts.
            output_type: ``np``, ``pt``, ``pil`` or ``latent``; see ``VideoOutput``.
            callback_on_step_end: called after each step; its result is ignored.
            **options: given frames and settings of the videos, as of the model's ``prepare``.

        Raises:
            TypeError, ValueError: an argument is of another type or out of range; it is named.
        """
        given, fps, seed = self.prepare(**options)
        given |= {"cache": cache, "on_step_end": callback_on_step_end, "decode": output_type != "latent"}
        texts = split_prompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        for text in texts:
            for name in text.keys() & {"prompt", "negative_prompt"}:
                check_prompt(name, text[name], self.clean_prompt)
        return make_videos(
            lambda index, seed, trace: self.stream(**texts[index], **given, seed=seed, trace=trace),
            len(texts),
            fps,
            seed,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            output_type=output_type,
            trace=trace,
            method=self.flowcache_method,
        )

    @cached_property
    def prompt_warnings(self) -> PromptWarnings:
        return PromptWarnings()

    def _note_losses(self, name: str, prompt: str, cleaned: str, max_tokens: int, trace: Trace) -> None:
        """Warn of words that the text encoder does not get, and note them in the trace."""
        losses = find_losses(prompt, cleaned, self.tokenizer, max_tokens)
        self.prompt_warnings.warn(name, losses, self.tokenizer)
        if losses:
            trace.settings.setdefault("prompt_losses", {})[name] = losses


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
        preset: one of ``flowcache.methods.PRESETS``; None: fast.
        kv_budget: chunks' worth of tokens that clean chunks keep in the KV cache; None: all.
        method: one of ``flowcache.methods.METHODS``.
        config: a configuration of your own in place of all other options.
        **options: further fields of ``flowcache.methods.MethodOptions``: ``policy``, ``kv_bits``, ...

    Returns:
        The configuration, now ``pipe.flowcache_config``.

    Raises:
        TypeError, ValueError: an option is unknown, out of range or not the method's; it is named.
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
    """Join the frames of all parts: ``[3, frames, height, width]`` in [-1, 1]."""
    return torch.cat([part.frames for part in parts], dim=1)


def split_prompts(**texts: str | list[str] | Tensor | None) -> list[dict[str, Any]]:
    """Split ``prompt``, ``negative_prompt`` and their ``_embeds`` into arguments for one prompt each.

    A single negative prompt or embedding holds for all prompts.

    Raises:
        TypeError, ValueError: not exactly one of ``prompt`` and ``prompt_embeds`` is given, or counts differ.
    """
    given = {name: value for name, value in texts.items() if value is not None}
    if ("prompt" in given) == ("prompt_embeds" in given):
        raise ValueError("prompt: expected either prompt or prompt_embeds; give one of them.")
    for name, value in given.items():
        if name.endswith("_embeds"):
            check_type(name, value, Tensor)
            if value.ndim != 3:
                raise ValueError(f"{name}: expected [prompts, tokens, width], got {list(value.shape)}.")
        elif not isinstance(value, list):
            given[name] = [value]
    count = max(1, len(given.get("prompt", given.get("prompt_embeds"))))
    for name, values in given.items():
        if len(values) not in (1, count):
            raise ValueError(f"{name}: expected one for each of {count} prompts, got {len(values)}.")
    return [{name: values[i % len(values)] for name, values in given.items()} for i in range(count)]


def make_videos(
    stream: Callable[[int, int, Trace], Iterable[VideoPart]],
    num_prompts: int,
    fps: float,
    seed: int = 0,
    *,
    num_videos_per_prompt: int = 1,
    generator: Generators | None = None,
    output_type: str = "np",
    trace: Trace | None = None,
    method: str = "",
) -> VideoOutput:
    """Make the videos of one call, one after another.

    Args:
        stream: yields the parts of one video from the index of its prompt, its seed and its trace.
        seed: seed of the first video without a generator; the next ones count up from it.
        generator: one for all videos or one for each; its next draw is the seed of a video.
        trace: to fill in, for a single video.
        method: name for the traces.

    Raises:
        TypeError, ValueError: an argument is of another type or out of range; it is named.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type: expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
    if num_videos_per_prompt < 1:
        raise ValueError(f"num_videos_per_prompt: expected at least 1, got {num_videos_per_prompt}.")
    count = num_prompts * num_videos_per_prompt
    if trace is not None and count > 1:
        raise ValueError(f"trace: expected a single video, got {count}; read the traces of the output.")
    each = isinstance(generator, list | tuple)
    if each and len(generator) != count:
        raise ValueError(f"generator: expected one for each of {count} videos, got {len(generator)}.")
    frames, latents, traces = [], [], []
    for index in range(count):
        own, own_seed = Trace(method=method) if trace is None else trace, seed + index
        if generator is not None:
            drawn = generator[index] if each else generator
            check_type("generator", drawn, torch.Generator)
            own_seed = int(torch.randint(2**62, (), generator=drawn, device=drawn.device))
        # Without the parts' states, which would keep the stream alive.
        parts = [(part.frames, part.latents) for part in stream(index // num_videos_per_prompt, own_seed, own)]
        video, clean = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
        frames.append(video)
        latents.append(clean)
        traces.append(VideoTrace(**vars(own)))
    stacked = torch.stack(latents)
    shown = stacked if output_type == "latent" else _convert(torch.stack(frames), output_type)
    return VideoOutput(shown, stacked, traces, fps)


def _convert(videos: Tensor, output_type: str) -> np.ndarray | Tensor | list[list[Image.Image]]:
    """Convert ``[videos, 3, frames, height, width]`` in [-1, 1] to the layout of ``output_type``."""
    shown = (videos.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return shown.transpose(1, 2)
    array = shown.permute(0, 2, 3, 4, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [[Image.fromarray(frame) for frame in video] for video in _to_pixels(array)]


def _to_pixels(frames: np.ndarray) -> np.ndarray:
    return (255 * frames).round().astype(np.uint8)
