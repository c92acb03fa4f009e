"""From a prompt to a video: SkyReels-V2 with FlowCache, on diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline
from torch import Tensor

from flowcache import Denoiser, FlowCacheConfig, Trace, cut_window
from flowcache.arguments import GivenFrames, check_type
from flowcache.methods import ModelTraits
from flowcache.noise import BlockNoise, DeviceNoise, make_generator
from flowcache.pipeline import StepCallback, convert_given
from flowcache.prompt_schedule import PromptSchedule
from flowcache.state import State, VideoPart, on_device
from flowcache.typed import check_keys
from flowcache.wan.chunk_model import WanChunkModel
from flowcache.wan.codec import VideoCodec
from flowcache.wan.model_folder import find_family
from flowcache.wan.pipeline import WanChunkPipeline
from flowcache.wan.sizes import TEMPORAL_STRIDE, latent_frames, pixel_frames
from flowcache.wan.solver import ChunkUniPC

from .methods import TRAITS, traits_for
from .settings import SMALL, VideoSettings, default_settings, make_settings
from .windows import check_streaming, plan_windows


class FlowCacheSkyReelsV2Pipeline(WanChunkPipeline, SkyReelsV2DiffusionForcingPipeline):
    """SkyReels-V2 diffusion forcing with chunkwise caching; components as in diffusers' pipeline.

    Latents and solver run in fp32, the transformer in its own type.
    """

    #: Default settings of the model: ``defaults.json`` and the negative prompt.
    model_defaults: dict[str, Any] = default_settings("")

    flowcache_together = replace(TRAITS, together=True).configure()
    default_settings = staticmethod(default_settings)

    def prepare(
        self,
        settings: VideoSettings | None = None,
        image: GivenFrames | None = None,
        last_image: GivenFrames | None = None,
        video: GivenFrames | None = None,
        **changes: Any,
    ) -> tuple[dict[str, Any], float, int]:
        """Make arguments of ``stream`` of a call's; also returns frames per second and seed.

        Args:
            settings: settings of the videos; None: the model's defaults.
            image, last_image: first frame, and the frame to arrive at.
            video: frames to continue: the last ``overlap_history`` of them, or all but at most three.
            **changes: as of ``make_settings``.
        """
        settings = self.make_settings(settings, **changes)
        frames = convert_given(settings.height, settings.width, image=image, last_image=last_image, video=video)
        prefix = frames.get("image")
        if (shown := frames.get("video")) is not None:
            count = settings.overlap_history or pixel_frames(latent_frames(shown.shape[1]))
            if shown.shape[1] < count:
                raise ValueError(f"video: expected overlap_history ({count}) frames, got {shown.shape[1]}.")
            prefix = shown[:, -count:]
        given = {"settings": settings, "prefix": prefix, "last": frames.get("last_image")}
        return given, settings.fps, settings.seed

    @torch.no_grad()
    def stream(
        self,
        prompt: str | PromptSchedule | None = None,
        negative_prompt: str | None = None,
        settings: VideoSettings | None = None,
        cache: FlowCacheConfig | None = None,
        prefix: GivenFrames | None = None,
        last: GivenFrames | None = None,
        trace: Trace | None = None,
        state: State | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        decode: bool = True,
        on_step_end: StepCallback | None = None,
        **changes: Any,
    ) -> Generator[VideoPart, str | None, None]:
        """Generate one video and yield the new frames of each block as soon as it is clean.

        ``stream.send(prompt)`` in place of ``next(stream)`` gives a prompt to all blocks that have not started, and
        returns the next part; all processes send the same. A prompt that is refused ends the stream.

        Args:
            prefix: first frames, ``[3, frames, height, width]`` in [-1, 1], or images or uint8 arrays (``as_frames``):
                one for image-to-video, ``4 k + 1`` to extend.
            last: frame to arrive at, ``[3, 1, height, width]``.
            state: state of a part of an earlier stream with the same arguments; this one continues behind it,
                and ``trace`` holds what happened until then.
            prompt_embeds, negative_prompt_embeds: ``[tokens, width]`` in place of prompts.
            decode: False leaves the frames of the parts empty, if the video is a single window.
        """
        settings = self.make_settings(settings, **changes)
        cache = cache or (self.flowcache_together if settings.moves_together else self.flowcache_config)
        trace, device = trace or Trace(), self._execution_device
        check_type("cache", cache, FlowCacheConfig)
        frames = convert_given(settings.height, settings.width, prefix=prefix, last=last)
        prefix, last = frames.get("prefix"), frames.get("last")
        if prefix is not None and prefix.shape[1] % TEMPORAL_STRIDE != 1:
            raise ValueError(f"prefix: expected 4 k + 1 frames, got {prefix.shape[1]}.")
        if last is not None and last.shape[1] != 1:
            raise ValueError(f"last: expected one frame, got {last.shape[1]}.")
        check_streaming(settings, cache, last is not None)
        plans = plan_windows(settings, 0 if prefix is None else prefix.shape[1])
        decode = decode or len(plans) > 1  # as windows take over frames
        texts = (prompt, negative_prompt), (prompt_embeds, negative_prompt_embeds)
        prompts, embeds, processes = self._begin(trace, settings, cache, settings.inference_steps, *texts, state)
        # The condition's noise has its own generator, so that methods draw the same noise for a window. The original
        # takes torch's default one for it, without a seed.
        generator, condition_generator = (make_generator(settings.noise, settings.seed, device) for _ in range(2))
        noise_dtype = torch.bfloat16 if settings.noise == "original" else torch.float32
        num_kept = 0 if settings.streaming else settings.overlap_history or 0

        def draw_noise(step: int, shape: torch.Size) -> Tensor:
            options = {"device": condition_generator.device, "dtype": noise_dtype}
            return torch.randn(shape, generator=condition_generator, **options).to(device, torch.float32)

        def stream_state() -> State:
            parts = {"decoder": codec, "denoiser": denoiser, "prompts": prompts}
            noise = condition_generator.get_state()
            states = {name: part.state_dict() for name, part in parts.items()}
            return {"window": index, "given": given, "condition_generator": noise, **states}

        def add_text(name: str, text: str) -> None:
            model.add_text(self._embed_beside(embeds[0], name, text, trace))

        size, steps = self._latent_size(settings), sum(len(plan.schedule(settings)) for plan in plans)
        with self._on_device("transformer"), self.progress_bar(total=steps) as progress:
            with self._stage("denoise", "transformer", trace):
                model = WanChunkModel(
                    self.transformer,
                    embeds[0],
                    grid=size,
                    num_frames=plans[0].frames + 1,
                    guidance_scale=settings.guidance_scale,
                    fps=settings.fps,
                    bidirectional=cache.bidirectional,
                    indicator=cache.policy.indicator,
                    runs_whole_window=not settings.streaming,
                    processes=processes,
                )
                for more in embeds[1:]:
                    model.add_text(more)
            denoiser = Denoiser(model, cache, trace, settings.addnoise_condition / 1000, draw_noise, prompts=prompts)
            progress.update(len(trace.steps))
            for index in range(0 if state is None else state["window"], len(plans)):
                plan, end = plans[index], last if index == len(plans) - 1 else None
                prompts.offset = sum(before.frames - after.prefix for before, after in pairwise(plans[: index + 1]))
                solver = ChunkUniPC(settings.inference_steps, settings.shift)
                # Later windows start with frames that the window before has shown.
                repeated = plan.prefix if index else 0
                codec = VideoCodec(self.vae, repeated, num_kept, "vae" in self._staged, self.process_group)
                condition_generator.manual_seed(settings.seed + index + 1)
                if resumed := state is not None:
                    given = on_device(state["given"], device)
                    codec.load_state_dict(state["decoder"])
                    denoiser.load_state_dict(state["denoiser"])
                    condition_generator.set_state(state["condition_generator"])
                    state = None  # it may be large
                else:
                    newest = prefix[:, -pixel_frames(plan.prefix) :] if plan.prefix else None
                    is_given = newest is not None or end is not None
                    with self._stage("encode", "vae" if is_given else None, trace):
                        given = tuple(f if f is None else codec.encode(f) for f in (newest, end))
                num_frames = plan.frames + (end is not None)
                shape = (self.transformer.config.in_channels, num_frames, *size)
                if settings.noise == "original":  # which appends a last frame to its noise
                    noise = DeviceNoise(generator, shape, plan.frames, device, noise_dtype)
                else:
                    at_once = latent_frames(settings.base_num_frames) if settings.streaming else num_frames
                    noise = BlockNoise(generator, shape, at_once, device)
                window = cut_window(noise, settings.causal_block_size, *given)
                # Given chunks are shown, too, except the one to arrive at.
                shown = [c for c in range(window.num_given) if window.chunks[c].start < plan.frames]
                schedule = plan.schedule(settings, end is not None)
                run = window, schedule, solver
                switch = partial(self._switch_prompt, denoiser, window, schedule, add_text)
                for latents in self._denoise(denoiser, *run, progress, on_step_end, switch, [] if resumed else shown):
                    new = latents.new_empty(3, 0, 0, 0), latents.clone()
                    if decode:
                        with self._stage("decode", "vae", trace):
                            new = codec.decode_new(latents)
                    if new is not None:
                        sent = yield VideoPart(*new, stream_state if denoiser.in_window else None)
                        if sent is not None:
                            switch(sent)
                prefix = codec.newest

    def make_settings(self, settings: VideoSettings | None = None, **changes: Any) -> VideoSettings:
        """Apply fields of ``VideoSettings``, and ``num_inference_steps``, to settings or to the model's defaults."""
        if "num_inference_steps" in changes:
            changes["inference_steps"] = changes.pop("num_inference_steps")
        check_keys(changes, VideoSettings.__dataclass_fields__, "arguments of SkyReels-V2")
        if settings is None:
            return make_settings(self.model_defaults, **changes)
        check_type("settings", settings, VideoSettings)
        return replace(settings, **changes)

    @property
    def flowcache_traits(self) -> ModelTraits:
        """Traits of this model, with the polynomial that was fitted for it."""
        fitted = self.model_defaults.get("reuse_coefficients")
        traits = traits_for(find_family(self.transformer.config))
        return traits if fitted is None else replace(traits, coefficients={True: fitted, False: fitted})

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **named: Any) -> Self:
        """Load as diffusers does, with the model's default settings; ``small`` is the small checkpoint."""
        folder = SMALL if folder == "small" else folder
        pipeline = super().from_pretrained(folder, **{"dtype": torch_dtype, **named})
        pipeline.model_defaults = default_settings(folder)
        return pipeline
