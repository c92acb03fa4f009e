"""The Python face that all pipelines share: ``enable``, diffusers' arguments, and the videos of a call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .arguments import GivenFrames, as_frames, check_type, split_prompts
from .chunk_model import Solver
from .config import FlowCacheConfig
from .denoise import Denoiser
from .environment import choose_device, peak_memory_bytes, synchronize
from .methods import MethodOptions, ModelTraits, make_config
from .offload import HostWeights
from .parallel import Group
from .prompt_schedule import PromptSchedule
from .prompts import PromptWarnings, check_prompt, find_losses
from .schedule import StaircaseSchedule
from .trace import Trace
from .video import VideoWriter
from .window import Window

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("np", "pt", "pil", "latent")

#: Components that ``enable_stage_offload`` keeps in host memory.
STAGED = ("text_encoder", "transformer", "vae")

#: Pipeline, step, timestep of the youngest live chunk, and ``{"latents": ...}`` of the live chunks.
StepCallback = Callable[["FlowCachePipeline", int, float, dict[str, Tensor]], Any]

#: Stages of a trace as the progress bar names them.
_STAGE_LABELS = {"encode": "encoding", "denoise": "denoising", "decode": "decoding"}


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
            writer.write(frames if frames.dtype == np.uint8 else (255 * frames).round().astype(np.uint8))


class FlowCachePipeline:
    """Mixin of diffusers pipelines; ``enable`` sets the configuration of calls that pass none.

    A model has ``stream``; ``prepare``, which makes its arguments, frames per second and a seed of a call's options;
    ``clean_prompt``, which gives the part of a prompt that is tokenized; and diffusers' ``video_processor``.
    """

    flowcache_config: FlowCacheConfig = FlowCacheConfig()
    flowcache_together: FlowCacheConfig = flowcache_config  # of videos all of whose chunks move together
    flowcache_method: str = "flowcache"
    flowcache_options: MethodOptions | None = None  # of ``enable``; None: a configuration in place of them
    flowcache_traits: ModelTraits

    #: Processes that make each video together, and parts of guidance, see ``parallelize``.
    process_group: Group = Group()
    cfg_size: int | str = "auto"

    _stage_device: torch.device | None = None
    _staged: Mapping[str, HostWeights] = MappingProxyType({})
    _bar: tqdm | None = None  # of the steps of the newest video

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | PromptSchedule | list[str | PromptSchedule] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        cache: FlowCacheConfig | None = None,
        trace: Trace | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> VideoOutput | tuple[Any]:
        """Generate videos, one after another; diffusers' arguments have diffusers' meaning.

        Args:
            prompt, negative_prompt: one or a list; None: the model's default negative prompt. A ``PromptSchedule`` is
                a prompt that changes while the video runs.
            cache: configuration of FlowCache; None: that of ``enable``.
            trace: filled in with what happens in a single video.
            generator: one for all videos or one for each; its next draw is the seed of a video. Without one, seeds
                count up from ``seed``.
            prompt_embeds, negative_prompt_embeds: ``[prompts, tokens, width]`` in place of prompts.
            output_type: ``np``, ``pt``, ``pil`` or ``latent``; see ``VideoOutput``.
            return_dict: False returns the tuple of the output's ``frames`` alone.
            callback_on_step_end: called after each step; of a dict that it returns, ``latents`` replace the given ones
                and ``prompt`` is that of all chunks that have not started.
            **options: given frames and settings of the videos, as of the model's ``prepare``.

        Raises:
            TypeError, ValueError: an argument is unknown, of another type or out of range; it is named.
        """
        given, fps, first_seed = self.prepare(**options)
        given |= {"cache": cache, "on_step_end": callback_on_step_end, "decode": output_type != "latent"}
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        texts = split_prompts(self.clean_prompt, prompt=prompt, negative_prompt=negative_prompt, **embeds)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: expected one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        check_type("num_videos_per_prompt", num_videos_per_prompt, int)
        if num_videos_per_prompt < 1:
            raise ValueError(f"num_videos_per_prompt: expected at least 1, got {num_videos_per_prompt}.")
        count = len(texts) * num_videos_per_prompt
        if trace is not None and count > 1:
            raise ValueError(f"trace: expected a single video, got {count}; read the traces of the output.")
        videos, traces, seeds = [], [], _draw_seeds(generator, count, first_seed)
        for index, seed in enumerate(self.process_group.broadcast_object(seeds)):
            own = Trace(method=self.flowcache_method) if trace is None else trace
            parts = self.stream(**texts[index // num_videos_per_prompt], **given, seed=seed, trace=own)
            # Without the parts' states, which would keep the stream alive.
            pieces = zip(*((part.frames, part.latents) for part in parts), strict=True)
            videos.append([torch.cat(each, dim=1) for each in pieces])
            traces.append(VideoTrace(**vars(own)))
        frames, latents = (torch.stack(each) for each in zip(*videos, strict=True))
        process = self.video_processor.postprocess_video
        shown = latents if output_type == "latent" else process(frames.float(), output_type)
        return VideoOutput(shown, latents, traces, fps) if return_dict else (shown,)

    def parallelize(self, group: Group, cfg_size: int | str = "auto") -> None:
        """Make each video together with the other processes of a group, which make the same calls.

        Every process gets the whole video, with the first one's seed. Callbacks must do the same in all.

        Args:
            group: the processes, each with the same weights.
            cfg_size: parts of guidance, 1 or 2; ``auto``: 2 where guidance and an even number of processes allow. The
                rest divides tokens. Models other than SkyReels-V2 divide tokens alone.
        """
        self.process_group, self.cfg_size = group, cfg_size

    def _share_text(self, embed: Callable[[], Tensor]) -> Tensor:
        """Embed text in the first process and send it to the others."""
        group = self.process_group
        return group.broadcast(embed() if group.is_first else None, self._execution_device)

    def enable_stage_offload(
        self, device: torch.device | str | None = None, components: Collection[str] = STAGED
    ) -> None:
        """Keep components in host memory and copy each to a device (None: CUDA if available) for its stage only.

        Text encoder and VAE are on the device while they run, the transformer until the video is finished. Components
        that are not named stay where they are.
        """
        components = [name for name in components if getattr(self, name) is not None]
        for name in components:
            if any(type(weight).__module__.startswith("bitsandbytes") for weight in getattr(self, name).parameters()):
                reason = "of bitsandbytes, which is bound to a device; leave it out of components"
                raise ValueError(f"{name}: expected weights that can move, got some {reason}.")
        self._stage_device = choose_device(device)
        self._staged = {name: HostWeights(getattr(self, name), self._stage_device) for name in components}

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """``enable_stage_offload`` by diffusers' name."""
        self.enable_stage_offload(device if gpu_id is None else f"cuda:{gpu_id}")

    def enable_group_offload(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse hooks on ``forward``, which chunks do not always call."""
        names = "enable_group_offload, enable_sequential_cpu_offload"
        raise NotImplementedError(f"{names}: expected offload of whole components; call enable_stage_offload.")

    enable_sequential_cpu_offload = enable_group_offload

    @property
    def _execution_device(self) -> torch.device:
        # Not diffusers' choice: it is that of the first component, which may be a text encoder on the CPU, and takes
        # milliseconds to search all modules for hooks of offload, which are refused.
        return self._stage_device or next(self.transformer.parameters()).device

    @cached_property
    def prompt_warnings(self) -> PromptWarnings:
        return PromptWarnings()

    def _clean(self, name: str, prompt: str, max_tokens: int, trace: Trace) -> str:
        """Clean a prompt; words that the text encoder does not get are a warning, and noted in the trace."""
        check_prompt(name, prompt, self.clean_prompt)
        cleaned = self.clean_prompt(prompt)
        losses = find_losses(prompt, cleaned, self.tokenizer, max_tokens)
        self.prompt_warnings.warn(name, losses, self.tokenizer)
        if losses:
            trace.settings.setdefault("prompt_losses", {})[name] = losses
        return cleaned

    def _switch_prompt(
        self,
        denoiser: Denoiser,
        window: Window,
        schedule: StaircaseSchedule,
        add_text: Callable[[str, str], None],
        sent: str,
    ) -> None:
        """Give a prompt to all chunks that have not started.

        ``add_text`` embeds a text that is new, with its name in messages, and adds it to the model. The trace lists
        the second of the video from which the prompt holds, and the prompt, in ``sent_prompts``.
        """
        check_prompt("prompt", sent, self.clean_prompt)
        waiting = schedule.first_waiting(denoiser.steps - 1)
        if waiting < len(window.chunks):
            start = window.chunks[waiting].start
        else:
            logger.warning("prompt: all chunks have started; it holds from the next window on, if there is one.")
            # The first at which a chunk of that window can start, behind the start of the last one that is running.
            start = max(window.chunks[-1].start + 1, window.chunks[-1].stop + 1 - window.longest)
        if denoiser.prompts.switch(sent, start):
            with self._stage("text", "text_encoder", denoiser.trace):
                add_text(f"prompt {len(denoiser.prompts.prompts)}", sent)
        denoiser.trace.settings.setdefault("sent_prompts", []).append([denoiser.prompts.last_second, sent])

    def _on_device(self, component: str | None) -> AbstractContextManager[None]:
        """Copy a component, if it is offloaded, to the device for a block; None: no component."""
        return self._staged.get(component) or nullcontext()

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> tqdm:
        """diffusers' progress bar, with the stage in front."""
        self._bar = super().progress_bar(iterable, total)
        return self._bar

    def _show_stage(self, name: str) -> AbstractContextManager[Any]:
        """Put the name of a stage in front of the bar; while no bar is open, show the name alone for a block."""
        label = _STAGE_LABELS.get(name, name)
        if self._bar is not None and not self._bar.disable:  # as closed ones are
            self._bar.set_description(label)
            return nullcontext()
        config = {"disable": not self.process_group.is_first} | getattr(self, "_progress_bar_config", {})
        return tqdm(desc=label, bar_format="{desc} ...", leave=False, disable=config["disable"])

    @contextmanager
    def _stage(self, name: str, component: str | None, trace: Trace) -> Iterator[None]:
        """Measure time and peak memory of a stage, with its component on the device and its name on the bar."""
        device = self._execution_device  # diffusers searches all modules for it
        shown = nullcontext() if component is None else self._show_stage(name)
        with shown, trace.timer(name), self._on_device(component):
            yield
            synchronize(device)
        trace.peak_memory_bytes = max(trace.peak_memory_bytes, peak_memory_bytes(device))

    def _denoise(
        self,
        denoiser: Denoiser,
        window: Window,
        schedule: StaircaseSchedule,
        solver: Solver,
        progress: Any,
        callback: StepCallback | None,
        switch: Callable[[str], None],
        shown: Iterable[int] = (),
    ) -> Iterator[Tensor]:
        """Latents of the given chunks that are shown, then of each chunk that becomes clean.

        ``switch`` takes a prompt that the callback returns.
        """
        trace = denoiser.trace

        def end_step() -> None:
            progress.update()
            if callback is None:
                return
            live = trace.steps[-1].events
            latents = [window.latents(event.chunk) for event in live]
            kwargs = {"latents": torch.cat(latents, dim=1).unsqueeze(0)}
            time = solver.timestep(live[-1].local_step, live[-1].chunk)
            made = callback(self, len(trace.steps) - 1, time, kwargs) or {}
            if "latents" in made:
                changed = made["latents"][0].split([each.shape[1] for each in latents], dim=1)
                for each, new in zip(latents, changed, strict=True):
                    each.copy_(new)
            if "prompt" in made:
                switch(made["prompt"])

        denoiser.on_step = end_step
        chunks = denoiser.run(window, schedule, solver)
        yield from map(window.latents, shown)
        while True:
            with self._stage("denoise", "transformer", trace), torch.inference_mode():
                chunk = next(chunks, None)
            if chunk is None:
                peak = denoiser.processes.world.max(
                    torch.tensor(trace.peak_memory_bytes, device=self._execution_device)
                )
                trace.peak_memory_bytes = int(peak)
                return
            yield chunk.latents


def enable(
    pipe: FlowCachePipeline,
    preset: str | None = None,
    kv_budget: int | None = None,
    *,
    method: str = "flowcache",
    config: FlowCacheConfig | None = None,
    **options: Any,
) -> FlowCacheConfig:
    """Choose how all later calls of a pipeline run; returns the configuration, now ``pipe.flowcache_config``.

    Videos all of whose chunks move together have another one (``make_config``), now ``pipe.flowcache_together``.

    Args:
        preset: one of ``flowcache.methods.PRESETS``; None: fast.
        kv_budget: chunks' worth of tokens that clean chunks keep in the KV cache; None: all.
        method: one of ``flowcache.methods.METHODS``.
        config: a configuration of your own in place of all other options.
        **options: further fields of ``flowcache.methods.MethodOptions``: ``policy``, ``kv_bits``, ...

    Raises:
        TypeError, ValueError: an option is unknown, out of range or not the method's; it is named.
    """
    check_type("pipe", pipe, FlowCachePipeline, "; make one with from_pipe of a FlowCache pipeline")
    if config is None:
        traits = pipe.flowcache_traits
        chosen = traits.translate({"method": method, "preset": preset, "budget": kv_budget, **options})
        config = make_config(chosen, traits)
        together = make_config(chosen, replace(traits, together=traits.whole_window))
    elif preset is not None or kv_budget is not None or options or method != "flowcache":
        raise ValueError("config: expected no other option beside it; leave them out.")
    else:
        together, chosen = config, None
    check_type("config", config, FlowCacheConfig)
    pipe.flowcache_config, pipe.flowcache_together, pipe.flowcache_method = config, together, method
    pipe.flowcache_options = chosen
    return config


def disable(pipe: FlowCachePipeline) -> FlowCacheConfig:
    """Run a pipeline as the original model does: the whole window at every step."""
    return enable(pipe, method="vanilla")


def convert_given(height: int, width: int, **given: GivenFrames | None) -> dict[str, Tensor]:
    """Convert the given frames of a call, by ``as_frames``; refuse an ``image`` beside a ``video``."""
    frames = {name: as_frames(name, value, height, width) for name, value in given.items() if value is not None}
    if {"image", "video"} <= frames.keys():
        raise ValueError("image: expected no video beside it; the video starts with one of them.")
    return frames


def _draw_seeds(generator: torch.Generator | list[torch.Generator] | None, count: int, first: int) -> list[int]:
    """Seeds of the videos of a call; without a generator, counted up from the first one."""
    if generator is None:
        return list(range(first, first + count))
    generators = list(generator) if isinstance(generator, list | tuple) else [generator] * count
    if len(generators) != count:
        raise ValueError(f"generator: expected one for each of {count} videos, got {len(generators)}.")
    for each in generators:
        check_type("generator", each, torch.Generator)
    return [int(torch.randint(2**62, (), generator=each, device=each.device)) for each in generators]
