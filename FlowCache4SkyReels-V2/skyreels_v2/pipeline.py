"""From a prompt to a video: SkyReels-V2 with FlowCache, on diffusers' pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SkyReelsV2DiffusionForcingPipeline
from diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing import prompt_clean
from torch import Tensor, nn

from flowcache import Denoiser, FlowCacheConfig, Trace, cut_window
from flowcache.arguments import GivenFrames, check_type
from flowcache.environment import describe_environment, peak_memory_bytes, synchronize
from flowcache.finite import check_finite
from flowcache.methods import ModelTraits
from flowcache.noise import BlockNoise
from flowcache.output import VideoPart
from flowcache.pipeline import FlowCachePipeline, Generators, VideoOutput, make_videos, split_prompts
from flowcache.prompts import PromptWarnings, find_losses
from flowcache.state import State, on_device

from .chunk_model import SkyReelsV2ChunkModel
from .codec import VideoCodec
from .conditions import Condition, check_prompts, make_condition
from .methods import traits_for
from .model_folder import SMALL, find_family
from .settings import DEFAULTS_FILE, VideoSettings, default_settings, latent_frames, make_settings, pixel_frames
from .solver import ChunkUniPC
from .windows import check_streaming, plan_windows

#: Most tokens of a prompt.
MAX_TEXT = 512

#: Pipeline, step, timestep of the youngest live block, and ``{"latents": ...}`` of the live blocks.
StepCallback = Callable[["FlowCacheSkyReelsV2Pipeline", int, float, dict[str, Tensor]], Any]


class FlowCacheSkyReelsV2Pipeline(FlowCachePipeline, SkyReelsV2DiffusionForcingPipeline):
    """SkyReels-V2 diffusion forcing with chunkwise caching; components as in diffusers' pipeline.

    Latents and solver run in fp32, the transformer in its own type.
    """

    #: Default settings of the model: ``defaults.json`` and the negative prompt.
    model_defaults: dict[str, Any] = default_settings("")

    _stage_device: torch.device | None = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        settings: VideoSettings | None = None,
        cache: FlowCacheConfig | None = None,
        condition: Condition | None = None,
        trace: Trace | None = None,
        *,
        image: GivenFrames | None = None,
        last_image: GivenFrames | None = None,
        video: GivenFrames | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        **changes: Any,
    ) -> VideoOutput:
        """Generate videos; diffusers' arguments have diffusers' meaning.

        Args:
            settings: settings of the videos; None: the model's defaults.
            cache: configuration of FlowCache; None: that of ``flowcache.enable``.
            condition: given frames, in place of ``image``, ``last_image`` and ``video``.
            trace: filled in with what happens in a single video.
            video: frames to continue: the last ``overlap_history`` of them, or all but at most three.
            generator: its next draw is the seed of a video; without one, seeds count up from ``seed``.
            callback_on_step_end: called after each step; its result is ignored.
            **changes: fields of ``VideoSettings`` over ``settings``, and ``num_inference_steps``.

        Raises:
            TypeError, ValueError: an argument is of another type or out of range; it is named.
        """
        settings = self.make_settings(settings, **changes)
        if condition is None:
            condition = make_condition(settings, image=image, last_image=last_image, video=video)
        elif not (image is last_image is video is None):
            raise ValueError("condition: expected no image, last_image or video beside it; leave it out.")
        texts = split_prompts(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        for text in texts if prompt_embeds is None else ():
            check_prompts(text["prompt"], text.get("negative_prompt"))

        def stream(index: int, seed: int, trace: Trace) -> Iterator[VideoPart]:
            return self.stream(
                **texts[index],
                settings=replace(settings, seed=seed),
                cache=cache,
                condition=condition,
                trace=trace,
                decode=output_type != "latent",
                on_step_end=callback_on_step_end,
            )

        return make_videos(
            stream,
            len(texts),
            settings.fps,
            settings.seed,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            output_type=output_type,
            trace=trace,
            method=self.flowcache_method,
        )

    @torch.no_grad()
    def stream(
        self,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        settings: VideoSettings | None = None,
        cache: FlowCacheConfig | None = None,
        condition: Condition | None = None,
        trace: Trace | None = None,
        state: State | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        decode: bool = True,
        on_step_end: StepCallback | None = None,
        **changes: Any,
    ) -> Iterator[VideoPart]:
        """Generate one video and yield the new frames of each block as soon as it is clean.

        Args:
            state: state of a part of an earlier stream with the same arguments; this one continues behind it,
                and ``trace`` holds what happened until then.
            prompt_embeds, negative_prompt_embeds: ``[tokens, width]`` in place of prompts.
            decode: False leaves the frames of the parts empty, if the video is a single window.

        Raises:
            TypeError, ValueError: as ``__call__``.
        """
        settings, cache = self.make_settings(settings, **changes), cache or self.flowcache_config
        condition, trace = condition or Condition(), trace if trace is not None else Trace()
        check_type("cache", cache, FlowCacheConfig)
        check_type("condition", condition, Condition, "; use Condition(prefix=...)")
        if prompt_embeds is None:
            check_prompts(prompt, negative_prompt)
        condition = condition.converted(settings.height, settings.width)
        check_streaming(settings, cache, condition.last is not None)
        settings.check_negative_prompt(negative_prompt)
        if negative_prompt is None:
            negative_prompt = self.default_negative_prompt
        reuse = cache.as_dict(settings.inference_steps)
        trace.settings |= {"prompt": prompt, "video": settings.as_dict(), "reuse": reuse}
        trace.environment = describe_environment(self.compute_device)
        history = condition.prefix
        plans = plan_windows(settings, 0 if history is None else history.shape[1])
        decode = decode or len(plans) > 1  # as windows take over frames
        texts = {"prompt": (prompt, prompt_embeds)}
        if settings.guidance_scale > 1:
            texts["negative_prompt"] = (negative_prompt, negative_prompt_embeds)
        with trace.timer("text"), self._resident("text_encoder"):
            embeds = self._embed_prompts(texts, trace)
        # The condition's noise has its own generator, so that methods draw the same noise for a window.
        generator, condition_generator = torch.Generator().manual_seed(settings.seed), torch.Generator()
        num_kept = 0 if settings.streaming else settings.overlap_history or 0

        def draw_noise(step: int, shape: torch.Size) -> Tensor:
            return torch.randn(shape, generator=condition_generator).to(self.compute_device)

        def end_step() -> None:
            progress.update()
            if on_step_end is not None:
                live = trace.steps[-1].events
                latents = torch.cat([window.latents(event.chunk) for event in live], dim=1).unsqueeze(0)
                timestep = solver.timestep(live[-1].local_step)
                on_step_end(self, len(trace.steps) - 1, timestep, {"latents": latents})

        def stream_state() -> State:
            parts = {"decoder": codec.state_dict(), "denoiser": denoiser.state_dict()}
            noise = condition_generator.get_state()
            return {"window": index, "given": given, "condition_generator": noise, **parts}

        with self._resident("transformer"):
            model = self._chunk_model(settings, cache, embeds, plans[0].frames)
        noise_share = settings.addnoise_condition / 1000
        denoiser = Denoiser(model, cache, trace, noise_share, draw_noise, end_step)
        with self.progress_bar(total=sum(len(plan.schedule(settings)) for plan in plans)) as progress:
            progress.update(0 if state is None else len(trace.steps))
            for index in range(0 if state is None else state["window"], len(plans)):
                plan, last = plans[index], condition.last if index == len(plans) - 1 else None
                solver = ChunkUniPC(settings.inference_steps, settings.shift)
                codec = VideoCodec(self.vae, plan.repeated, num_kept)
                condition_generator.manual_seed(settings.seed + index + 1)
                if resumed := state is not None:
                    given = on_device(state["given"], self.compute_device)
                    codec.load_state_dict(on_device(state["decoder"], self.compute_device))
                    denoiser.load_state_dict(state["denoiser"])
                    condition_generator.set_state(state["condition_generator"])
                    state = None  # it may be large
                else:
                    with trace.timer("encode"), self._resident("vae"):
                        newest = history[:, -pixel_frames(plan.prefix) :] if plan.prefix else None
                        given = tuple(f if f is None else codec.encode(f) for f in (newest, last))
                num_frames = plan.frames + (last is not None)
                at_once = latent_frames(settings.base_num_frames) if settings.streaming else num_frames
                shape = (self.transformer.config.in_channels, num_frames, *self._latent_size(settings))
                noise = BlockNoise(generator, shape, at_once, self.compute_device)
                window = cut_window(noise, settings.causal_block_size, *given)
                chunks = denoiser.run(window, plan.schedule(settings, last is not None), solver)
                # Given chunks are shown, too, except the one to arrive at.
                shown = [c for c in range(window.num_given) if window.chunks[c].start < plan.frames]
                pending = [] if resumed else [window.latents(c) for c in shown]
                for latents in self._clean_latents(pending, chunks, trace):
                    new = latents.new_empty(3, 0, 0, 0), latents.clone()
                    if decode:
                        with trace.timer("decode"), self._resident("vae"):
                            new = codec.decode_new(latents)
                    peak = peak_memory_bytes(self.compute_device)
                    trace.peak_memory_bytes = max(trace.peak_memory_bytes, peak)
                    if new is not None:
                        yield VideoPart(*new, stream_state if denoiser.in_window else None)
                history = codec.newest

    def make_settings(self, settings: VideoSettings | None = None, **changes: Any) -> VideoSettings:
        """Apply changes, as of ``__call__``, to ``settings`` or to the model's defaults."""
        if "num_inference_steps" in changes:
            changes["inference_steps"] = changes.pop("num_inference_steps")
        if settings is None:
            return make_settings(self.model_defaults, **changes)
        check_type("settings", settings, VideoSettings)
        return replace(settings, **changes)

    @property
    def flowcache_traits(self) -> ModelTraits:
        """Traits of this model, with the polynomial that was fitted for it."""
        traits, own = traits_for(find_family(self.transformer.config)), self.model_defaults
        fitted = own.get("reuse_coefficients")
        return traits if fitted is None else replace(traits, coefficients={True: fitted, False: fitted})

    @classmethod
    def from_pretrained(cls, folder: str | Path, **named: Any) -> FlowCacheSkyReelsV2Pipeline:
        """Load as diffusers does, with the model's default settings; ``small`` is the small checkpoint."""
        folder = SMALL if folder == "small" else folder
        pipeline = super().from_pretrained(folder, **named)
        pipeline.model_defaults = default_settings(folder)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **named: Any) -> FlowCacheSkyReelsV2Pipeline:
        """Share the components of another pipeline, in their types; diffusers would cast them to fp32."""
        names, _ = cls._get_signature_keys(cls)
        made = cls(**{name: part for name, part in pipeline.components.items() if name in names} | named)
        defaults = default_settings(pipeline.config.get("_name_or_path") or "")
        made.model_defaults = getattr(pipeline, "model_defaults", defaults)
        return made

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, with the model's default settings."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if "model_defaults" in vars(self):
            content = json.dumps(self.model_defaults, indent=2, ensure_ascii=False)
            (Path(save_directory) / DEFAULTS_FILE).write_text(f"{content}\n", encoding="utf-8")

    def enable_stage_offload(self, device: torch.device | str) -> None:
        """Keep the components on the CPU and move each to ``device`` only for its stage."""
        self._stage_device = torch.device(device)

    @cached_property
    def prompt_warnings(self) -> PromptWarnings:
        return PromptWarnings()

    @property
    def default_negative_prompt(self) -> str:
        """Negative prompt of calls that pass none."""
        return self.model_defaults.get("negative_prompt", "")

    @property
    def compute_device(self) -> torch.device:
        """Device on which components run."""
        return self._stage_device or self.device

    @property
    def text_length(self) -> int:
        """Tokens to which prompts are padded: the tokenizer's limit, at most the model's 512."""
        return min(MAX_TEXT, self.tokenizer.model_max_length) if self.tokenizer else MAX_TEXT

    def _clean_latents(self, given: list[Tensor], chunks: Iterator[Any], trace: Trace) -> Iterator[Tensor]:
        """Latents of the given chunks, then of those that the loop makes clean."""
        while given:
            yield given.pop(0)
        while True:
            with trace.timer("denoise"), self._resident("transformer"), torch.inference_mode():
                chunk = next(chunks, None)
                synchronize(self.compute_device)
            if chunk is None:
                return
            yield chunk.latents

    def _latent_size(self, settings: VideoSettings) -> tuple[int, int]:
        # Diffusers' pipeline infers the stride from the number of levels: wrong for a VAE that cuts patches.
        stride = self.vae.config.scale_factor_spatial
        return settings.height // stride, settings.width // stride

    @contextmanager
    def _resident(self, component: str) -> Iterator[None]:
        """Keep a component on the compute device within the context."""
        module: nn.Module = getattr(self, component)
        if self._stage_device is not None:
            module.to(self._stage_device)
        try:
            yield
        finally:
            if self._stage_device is not None:
                module.to("cpu")

    def _embed_prompts(self, texts: dict[str, tuple[str | None, Tensor | None]], trace: Trace) -> Tensor:
        """Embed texts that come without embeddings; ``[texts, tokens, text_dim]``.

        The trace notes words that the text encoder does not get.
        """
        unknown = {name: text for name, (text, given) in texts.items() if given is None}
        embeds = {name: given for name, (_, given) in texts.items() if given is not None}
        length = len(next(iter(embeds.values()))) if embeds else self.text_length
        expected = [length, self.transformer.config.text_dim]
        for name, given in embeds.items():
            if list(given.shape) != expected:
                raise ValueError(f"{name}_embeds: expected {expected}, got {list(given.shape)}.")
        for name, text in unknown.items():
            losses = find_losses(text, prompt_clean(text), self.tokenizer, length)
            self.prompt_warnings.warn(name, losses, self.tokenizer)
            if losses:
                trace.settings.setdefault("prompt_losses", {})[name] = losses
        to = {"device": self.compute_device, "dtype": self.transformer.dtype}
        if unknown:
            made, _ = self.encode_prompt(
                list(unknown.values()), do_classifier_free_guidance=False, max_sequence_length=length, **to
            )
            embeds |= dict(zip(unknown, made, strict=True))
        return check_finite("text embeddings", torch.stack([embeds[name].to(**to) for name in texts]))

    def _chunk_model(
        self, settings: VideoSettings, cache: FlowCacheConfig, embeds: Tensor, num_frames: int
    ) -> SkyReelsV2ChunkModel:
        return SkyReelsV2ChunkModel(
            self.transformer,
            embeds,
            grid=self._latent_size(settings),
            num_frames=num_frames + 1,
            guidance_scale=settings.guidance_scale,
            fps=settings.fps,
            bidirectional=cache.bidirectional,
            indicator=cache.policy.indicator,
            runs_whole_window=not settings.streaming,
        )
