"""From a prompt to a video: SkyReels-V2 with FlowCache, on diffusers' pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing import prompt_clean
from torch import Tensor, nn

from flowcache import (
    Denoiser,
    FlowCacheConfig,
    StaircaseSchedule,
    Trace,
    Window,
    cut_window,
)
from flowcache.arguments import GivenFrames, as_frames, check_type
from flowcache.environment import describe_environment, peak_memory_bytes, synchronize
from flowcache.finite import check_finite
from flowcache.noise import BlockNoise
from flowcache.output import VideoOutput, VideoPart
from flowcache.prompts import PromptWarnings, check_prompt, find_losses
from flowcache.state import State

from .chunk_model import SkyReelsV2ChunkModel
from .codec import VideoCodec
from .model_folder import read_defaults
from .settings import DEFAULTS_FILE, TEMPORAL_STRIDE, VideoSettings, latent_frames, pixel_frames
from .solver import ChunkUniPC
from .stream import StreamPosition, WindowDecoder
from .windows import WindowPlan, check_streaming, plan_windows


@dataclass(frozen=True)
class Condition:
    """What a video starts from or arrives at; pixels in [-1, 1], or images or uint8 arrays (``as_frames``).

    Attributes:
        prefix: first frames, ``[3, frames, height, width]``: one for image-to-video, ``4 k + 1`` to extend.
        last: frame to arrive at, ``[3, 1, height, width]``.
    """

    prefix: GivenFrames | None = None
    last: GivenFrames | None = None

    def converted(self, height: int, width: int) -> Condition:
        """The same as tensors.

        Raises:
            TypeError: frames are of an unknown type; the argument is named.
            ValueError: they do not fit; the argument is named.
        """
        prefix, last = (
            None if frames is None else as_frames(f"condition.{name}", frames, height, width)
            for name, frames in vars(self).items()
        )
        if prefix is not None and prefix.shape[1] % TEMPORAL_STRIDE != 1:
            raise ValueError(f"condition.prefix must have 4 k + 1 frames, got {prefix.shape[1]}.")
        if last is not None and last.shape[1] != 1:
            raise ValueError(f"condition.last must be one frame, got {last.shape[1]}.")
        return Condition(prefix, last)


class FlowCacheSkyReelsV2Pipeline(SkyReelsV2DiffusionForcingPipeline):
    """SkyReels-V2 diffusion forcing with chunkwise caching; components as in diffusers' pipeline.

    Text-to-video, image-to-video (first frame, or first and last) and video extension differ only in the
    condition. Latents and solver run in fp32, the transformer in its own type.
    """

    #: What to avoid where the caller does not say; set by ``load_pipeline`` to what suits the model.
    default_negative_prompt: str = ""

    #: Settings that suit the model, for ``defaults.json``; set by ``load_pipeline``.
    model_defaults: dict[str, Any] | None = None

    _stage_device: torch.device | None = None

    @cached_property
    def prompt_warnings(self) -> PromptWarnings:
        """Warnings of this pipeline."""
        return PromptWarnings()

    @property
    def latent_stride(self) -> int:
        """Pixels to a latent, along height and width, as the VAE's configuration says.

        Diffusers' pipeline infers it from the number of levels, and is wrong for a VAE that cuts patches.
        """
        return self.vae.config.scale_factor_spatial

    @torch.no_grad()
    def __call__(self, *inputs: Any, trace: Trace | None = None, **named: Any) -> VideoOutput:
        """Generate a video; takes what ``stream`` takes."""
        trace = trace if trace is not None else Trace()
        return VideoOutput.join(self.stream(*inputs, trace=trace, **named), trace)

    @torch.no_grad()
    def stream(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        settings: VideoSettings | None = None,
        cache: FlowCacheConfig | None = None,
        condition: Condition | None = None,
        trace: Trace | None = None,
        state: State | None = None,
    ) -> Iterator[VideoPart]:
        """Generate a video and yield the new frames of each block as soon as it is clean.

        Args:
            prompt: what to show.
            negative_prompt: what to avoid; used with guidance. None: what suits the model.
            settings: the video; see ``VideoSettings`` for the defaults.
            cache: the method; see ``FlowCacheConfig`` for the default.
            condition: first frames, last frame.
            trace: filled in with what happens.
            state: of a part that an earlier stream of the same arguments gave; this one goes on behind it.
                ``trace`` holds what happened until then.

        Raises:
            TypeError: an argument is of another type; it is named.
            ValueError: the cleaning leaves nothing of a prompt; or a condition is of another size than the
                video, or its frames do not fit; or streaming does not go with the rest.
        """
        check_prompts(prompt, negative_prompt)
        settings, cache = settings or VideoSettings(), cache or FlowCacheConfig()
        condition = condition if condition is not None else Condition()
        check_type("settings", settings, VideoSettings)
        check_type("cache", cache, FlowCacheConfig)
        check_type("condition", condition, Condition, "; use Condition(prefix=...)")
        condition = condition.converted(settings.height, settings.width)
        check_streaming(settings, cache, condition.last is not None)
        settings.check_negative_prompt(negative_prompt)
        if negative_prompt is None:
            negative_prompt = self.default_negative_prompt
        trace = trace if trace is not None else Trace()
        reuse = cache.as_dict(settings.inference_steps)
        trace.settings |= {"prompt": prompt, "video": settings.as_dict(), "reuse": reuse}
        trace.environment = describe_environment(self.compute_device)
        with trace.timer("text"), self._resident("text_encoder"):
            embeds = self._embed_prompts(prompt, negative_prompt, settings.guidance_scale, trace)
        # Apart, so that the noise of a window is the same whatever the method draws for its condition.
        generator = torch.Generator().manual_seed(settings.seed)
        condition_generator = torch.Generator()
        history = condition.prefix
        plans = plan_windows(settings, 0 if history is None else history.shape[1])
        with self._resident("transformer"):
            denoiser = self._denoiser(settings, cache, embeds, plans[0].frames, condition_generator, trace)
        position = StreamPosition(denoiser, condition_generator)
        overlap = None if settings.streaming else settings.overlap_history
        with self.progress_bar(total=sum(len(plan.schedule(settings)) for plan in plans)) as progress:
            denoiser.on_step = progress.update
            progress.update(0 if state is None else len(trace.steps))
            for index in range(0 if state is None else state["window"], len(plans)):
                plan, last = plans[index], condition.last if index == len(plans) - 1 else None
                schedule = plan.schedule(settings, last is not None)
                condition_generator.manual_seed(settings.seed + index + 1)
                position.window = index
                position.decoder = WindowDecoder(VideoCodec(self.vae), plan.repeated, overlap)
                resumed = state is not None
                if resumed:
                    position.load_state_dict(state, self.compute_device)
                    state = None  # it may be large
                else:
                    with trace.timer("encode"), self._resident("vae"):
                        position.given = self._encode_given(plan, history, last)
                window = self._new_window(settings, plan, *position.given, generator)
                clean = self._clean_latents(
                    denoiser, window, schedule, ChunkUniPC(settings.inference_steps, settings.shift)
                )
                given = () if resumed else self._given_latents(window, plan)
                yield from self._decoded(position, chain(given, clean), trace)
                history = position.decoder.newest

    def _decoded(
        self, position: StreamPosition, clean: Iterable[Tensor], trace: Trace
    ) -> Iterator[VideoPart]:
        """What is new of a window, chunk by chunk, from their latents."""
        for latents in clean:
            with trace.timer("decode"), self._resident("vae"):
                part = position.decoder.decode(latents)
            trace.peak_memory_bytes = max(trace.peak_memory_bytes, peak_memory_bytes(self.compute_device))
            if part is not None:
                yield replace(part, state=position.state_dict) if position.denoiser.in_window else part

    @staticmethod
    def _given_latents(window: Window, plan: WindowPlan) -> Iterator[Tensor]:
        """Latents of each given chunk, without the one to arrive at."""
        return map(
            window.latents, [c for c in range(window.num_given) if window.chunks[c].start < plan.frames]
        )

    def _clean_latents(
        self, denoiser: Denoiser, window: Window, schedule: StaircaseSchedule, solver: ChunkUniPC
    ) -> Iterator[Tensor]:
        """Run the loop; latents of each chunk in order of time as it is clean."""
        chunks = denoiser.run(window, schedule, solver)
        while True:
            with denoiser.trace.timer("denoise"), self._resident("transformer"), torch.inference_mode():
                chunk = next(chunks, None)
                synchronize(self.compute_device)
            if chunk is None:
                return
            yield chunk.latents

    def _encode_given(
        self, plan: WindowPlan, frames: Tensor | None, last: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Latents of what a window begins with, the newest of ``frames``, and of what it arrives at."""
        codec = VideoCodec(self.vae)
        prefix = codec.encode(frames[:, -pixel_frames(plan.prefix) :]) if plan.prefix else None
        return prefix, None if last is None else codec.encode(last)

    def _new_window(
        self,
        settings: VideoSettings,
        plan: WindowPlan,
        prefix: Tensor | None,
        arrival: Tensor | None,
        generator: torch.Generator,
    ) -> Window:
        """Noise with what is given in its place: ``prefix`` first, ``arrival`` at the end."""
        stride = self.latent_stride
        num_frames = plan.frames + (arrival is not None)
        shape = (
            self.transformer.config.in_channels,
            num_frames,
            settings.height // stride,
            settings.width // stride,
        )
        at_once = latent_frames(settings.base_num_frames) if settings.streaming else num_frames
        noise = BlockNoise(generator, shape, at_once, self.compute_device)
        return cut_window(noise, settings.causal_block_size, prefix, arrival)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **named: Any) -> FlowCacheSkyReelsV2Pipeline:
        """Load as diffusers does, with the settings that suit the model as its folder says."""
        pipeline, own = super().from_pretrained(folder, **named), read_defaults(Path(folder))
        if own:
            pipeline.model_defaults = own
            pipeline.default_negative_prompt = own.get("negative_prompt", "")
        return pipeline

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, with the settings that suit the model, which ``load_pipeline`` reads."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.model_defaults is not None:
            content = json.dumps(self.model_defaults, indent=2, ensure_ascii=False)
            (Path(save_directory) / DEFAULTS_FILE).write_text(f"{content}\n", encoding="utf-8")

    def enable_stage_offload(self, device: torch.device | str) -> None:
        """Keep the components on the CPU and move each to ``device`` only for its stage."""
        self._stage_device = torch.device(device)

    @property
    def compute_device(self) -> torch.device:
        """Where the work is done."""
        return self._stage_device or self.device

    @property
    def text_length(self) -> int:
        """Tokens to which prompts are padded: the tokenizer's limit, at most the model's 512."""
        return min(512, self.tokenizer.model_max_length)

    @contextmanager
    def _resident(self, component: str) -> Iterator[None]:
        module: nn.Module = getattr(self, component)
        if self._stage_device is None:
            yield
            return
        module.to(self._stage_device)
        try:
            yield
        finally:
            module.to("cpu")

    def _embed_prompts(
        self, prompt: str, negative_prompt: str, guidance_scale: float, trace: Trace
    ) -> Tensor:
        """``[branches, tokens, text_dim]``: the caption and, with guidance, what to avoid.

        Notes in the trace what the text encoder does not get of them.
        """
        prompts = {"prompt": prompt}
        if guidance_scale > 1:
            prompts["negative_prompt"] = negative_prompt
        for name, text in prompts.items():
            losses = find_losses(text, prompt_clean(text), self.tokenizer, self.text_length)
            self.prompt_warnings.warn(name, losses, self.tokenizer)
            if losses:
                trace.settings.setdefault("prompt_losses", {})[name] = losses
        embeds, _ = self.encode_prompt(
            list(prompts.values()),
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=self.compute_device,
            dtype=self.transformer.dtype,
        )
        return check_finite("text embeddings", embeds)

    def _denoiser(
        self,
        settings: VideoSettings,
        cache: FlowCacheConfig,
        embeds: Tensor,
        num_frames: int,
        generator: torch.Generator,
        trace: Trace,
    ) -> Denoiser:
        model = SkyReelsV2ChunkModel(
            self.transformer,
            embeds,
            grid=(settings.height // self.latent_stride, settings.width // self.latent_stride),
            num_frames=num_frames + 1,
            guidance_scale=settings.guidance_scale,
            fps=settings.fps,
            bidirectional=cache.bidirectional,
            indicator=cache.policy.indicator,
            runs_whole_window=not settings.streaming,
        )
        return Denoiser(
            model,
            cache,
            trace,
            condition_noise=settings.addnoise_condition / 1000,
            draw_noise=lambda step, shape: torch.randn(shape, generator=generator).to(self.compute_device),
        )


def check_prompts(prompt: str, negative_prompt: str | None) -> None:
    """Refuse prompts of which the cleaning leaves nothing.

    Raises:
        TypeError: one is no text; it is named.
        ValueError: one sentence that names the argument.
    """
    check_prompt("prompt", prompt, prompt_clean)
    if negative_prompt is not None:
        check_prompt("negative_prompt", negative_prompt, prompt_clean)
