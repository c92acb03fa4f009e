"""From a prompt to a video: Self-Forcing and Causal-Forcing with FlowCache, on diffusers' pipeline."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SkyReelsV2Transformer3DModel, WanPipeline
from torch import Tensor, nn

from flowcache import Denoiser, FlowCacheConfig, Trace, cut_window
from flowcache.arguments import GivenFrames, check_type
from flowcache.methods import check_config
from flowcache.noise import BlockNoise, Noise, make_generator
from flowcache.pipeline import StepCallback, convert_given
from flowcache.prompt_schedule import PromptSchedule
from flowcache.state import State, VideoPart
from flowcache.typed import check_keys
from flowcache.wan.chunk_model import WanChunkModel
from flowcache.wan.codec import VideoCodec
from flowcache.wan.pipeline import WanChunkPipeline
from flowcache.wan.sizes import TEMPORAL_STRIDE, latent_frames

from .methods import TRAITS, check_method, find_unread, fit_method, method_config
from .settings import SMALL, VideoSettings, default_settings, make_settings
from .windows import plan

#: Latent frames whose noise is drawn at once: those of the original's videos.
NOISE_FRAMES = 21


class FlowCacheSelfForcingPipeline(WanChunkPipeline, WanPipeline):
    """Autoregressive Wan 2.1 models, chunk by chunk against a KV cache; components as in diffusers' Wan pipeline.

    The transformer is diffusers' class for one time per frame, which has Wan's weights. Latents and solver run in
    fp32, the transformer in its own type.
    """

    model_defaults: dict[str, Any] = default_settings("")
    default_settings = staticmethod(default_settings)

    flowcache_config, flowcache_traits = method_config("vanilla"), TRAITS

    def prepare(
        self,
        settings: VideoSettings | None = None,
        image: GivenFrames | None = None,
        video: GivenFrames | None = None,
        **changes: Any,
    ) -> tuple[dict[str, Any], float, int]:
        """Make arguments of ``stream`` of a call's; also returns frames per second and seed.

        Args:
            settings: settings of the videos; None: the model's defaults.
            image: first frame.
            video: frames to continue: the last ``overlap_history`` of them.
            **changes: as of ``make_settings``.
        """
        settings = self.make_settings(settings, **changes)
        frames = convert_given(settings.height, settings.width, image=image, video=video)
        prefix = frames.get("image")
        if (shown := frames.get("video")) is not None:
            if shown.shape[1] < (count := settings.overlap_history):
                raise ValueError(f"video: expected overlap_history ({count}) frames, got {shown.shape[1]}.")
            prefix = shown[:, -count:]
        count = 0 if prefix is None else latent_frames(prefix.shape[1])
        if "num_frames" in changes:
            settings.check_frames(count, in_pixels=True)
        elif prefix is not None and "num_output_frames" not in changes:
            settings = replace(settings, num_output_frames=settings.fitting_frames(count))
        return {"settings": settings, "prefix": prefix}, settings.fps, settings.seed

    @torch.no_grad()
    def stream(
        self,
        prompt: str | PromptSchedule | None = None,
        negative_prompt: str | None = None,
        settings: VideoSettings | None = None,
        cache: FlowCacheConfig | None = None,
        prefix: GivenFrames | None = None,
        trace: Trace | None = None,
        state: State | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        decode: bool = True,
        on_step_end: StepCallback | None = None,
        **changes: Any,
    ) -> Generator[VideoPart, str | None, None]:
        """Generate one video and yield the new frames of each chunk as soon as it is clean.

        ``stream.send(prompt)`` in place of ``next(stream)`` gives a prompt to all chunks that have not started, and
        returns the next part; all processes send the same. A prompt that is refused ends the stream.

        Args:
            prefix: first frames, ``[3, frames, height, width]`` in [-1, 1], or images or uint8 arrays (``as_frames``):
                one for image-to-video, ``4 k + 1`` to extend.
            state: state of a part of an earlier stream with the same arguments; this one continues behind it,
                and ``trace`` holds what happened until then.
            prompt_embeds, negative_prompt_embeds: ``[tokens, width]`` in place of prompts.
            decode: False leaves the frames of the parts empty.
        """
        settings = self.make_settings(settings, **changes)
        if cache is None and (options := self.flowcache_options) is not None:
            check_method(options, settings)
            _refuse_unread(settings, vars(options), {})
        check_type("cache", cache := cache or self.flowcache_config, FlowCacheConfig)
        check_config(cache, TRAITS)
        cache = fit_method(cache, settings)
        trace = trace or Trace()
        prefix = convert_given(settings.height, settings.width, prefix=prefix).get("prefix")
        if prefix is not None and prefix.shape[1] % TEMPORAL_STRIDE != 1:
            raise ValueError(f"prefix: expected 4 k + 1 frames, got {prefix.shape[1]}.")
        num_given = 0 if prefix is None else latent_frames(prefix.shape[1])
        settings.check_frames(num_given)
        texts = (prompt, negative_prompt), (prompt_embeds, negative_prompt_embeds)
        prompts, embeds, processes = self._begin(trace, settings, cache, settings.num_steps, *texts, state)
        codec = VideoCodec(self.vae, offload="vae" in self._staged, group=self.process_group)
        with self._stage("encode", None if prefix is None else "vae", trace):
            given = None if prefix is None else codec.encode(prefix)
        size = self._latent_size(settings)
        shape = (self.transformer.config.in_channels, settings.num_output_frames, *size)
        noise, generator, dtype = self._draw_noise(settings, shape, num_given)
        window = cut_window(noise, settings.num_frame_per_block, given, first_frames=settings.first_frames(num_given))
        schedule, solver = plan(settings, len(window.chunks), window.num_given, generator, dtype)
        with self._on_device("transformer"), self.progress_bar(total=len(schedule)) as progress:
            with self._stage("denoise", "transformer", trace):
                model = WanChunkModel(
                    self.transformer,
                    embeds[0],
                    grid=size,
                    num_frames=settings.num_output_frames,
                    guidance_scale=settings.guidance_scale,
                    indicator=cache.policy.indicator,
                    runs_whole_window=False,
                    processes=processes,
                )
                for more in embeds[1:]:
                    model.add_text(more)
            denoiser = Denoiser(model, cache, trace, clean_time=settings.clean_time, prompts=prompts)
            progress.update(len(trace.steps))
            if resumed := state is not None:
                codec.load_state_dict(state["decoder"])
                denoiser.load_state_dict(state["denoiser"])
                state = None  # it may be large

            def stream_state() -> State:
                parts = {"decoder": codec, "denoiser": denoiser, "prompts": prompts}
                return {name: part.state_dict() for name, part in parts.items()}

            def add_text(name: str, text: str) -> None:
                model.add_text(self._embed_beside(embeds[0], name, text, trace))

            switch = partial(self._switch_prompt, denoiser, window, schedule, add_text)
            shown = [] if resumed else range(window.num_given)
            for latents in self._denoise(denoiser, window, schedule, solver, progress, on_step_end, switch, shown):
                frames = latents.new_empty(3, 0, 0, 0)
                if decode:
                    with self._stage("decode", "vae", trace):
                        frames = codec.decode(latents)
                sent = yield VideoPart(frames, latents.clone(), stream_state if denoiser.in_window else None)
                if sent is not None:
                    switch(sent)

    def _draw_noise(
        self, settings: VideoSettings, shape: tuple[int, int, int, int], num_given: int
    ) -> tuple[Noise, torch.Generator, torch.dtype]:
        """Start noise of a video, and generator and type of the fresh noise of its steps.

        The original draws both from one generator, the start noise of all frames to generate first.
        """
        device = self._execution_device
        if settings.noise == "portable":
            generators = [make_generator("portable", settings.seed + i, device) for i in range(2)]
            return BlockNoise(generators[0], shape, NOISE_FRAMES, device), generators[1], torch.float32
        generator, dtype = make_generator("original", settings.seed, device), torch.bfloat16
        channels, frames, *size = shape
        options = {"generator": generator, "device": generator.device, "dtype": dtype}
        drawn = torch.randn((frames - num_given, channels, *size), **options)
        start = torch.cat([drawn.new_zeros(num_given, channels, *size), drawn]).transpose(0, 1)
        return Noise(start.to(device, torch.float32)), generator, dtype

    def make_settings(self, settings: VideoSettings | None = None, **changes: Any) -> VideoSettings:
        """Apply fields of ``VideoSettings``, and diffusers' names of some, to settings or to the model's defaults.

        Raises ValueError for one that has no effect.
        """
        spelled = {"sampling_steps": "num_inference_steps"} if "num_inference_steps" in changes else {}
        if "num_inference_steps" in changes:
            changes["sampling_steps"] = changes.pop("num_inference_steps")
        if "num_frames" in changes:
            if (frames := changes.pop("num_frames")) % TEMPORAL_STRIDE != 1:
                raise ValueError(f"num_frames: expected 4 k + 1 (1, 5, 9, ...), got {frames}.")
            changes["num_output_frames"] = latent_frames(frames)
        check_keys(changes, VideoSettings.__dataclass_fields__, "arguments of Self-Forcing")
        if settings is None:
            settings = make_settings(self.model_defaults, **changes)
        else:
            check_type("settings", settings, VideoSettings)
            settings = replace(settings, **changes)
        _refuse_unread(settings, changes, spelled)
        return settings

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **named: Any) -> Self:
        """Load as diffusers does, with the model's default settings; ``small`` is the small checkpoint."""
        folder = SMALL if folder == "small" else folder
        pipeline = cls.from_pipe(WanPipeline.from_pretrained(folder, **{"dtype": torch_dtype, **named}))
        pipeline.model_defaults = default_settings(folder)
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **named: Any) -> Self:
        """Share the components of another pipeline, in their types, such as those of diffusers' ``WanPipeline``."""
        transformer = named.pop("transformer", pipeline.components["transformer"])
        return super().from_pipe(pipeline, transformer=as_frame_timed(transformer), **named)


def _refuse_unread(settings: VideoSettings, given: Mapping[str, Any], spelled: Mapping[str, str]) -> None:
    """Raise ValueError for a given value that has no effect on a video; ``spelled``: other names in the message."""
    for name, reason in find_unread(settings).items():
        if given.get(name) is not None:
            raise ValueError(f"{spelled.get(name, name)}: no effect, as {reason}; leave it out.")


def as_frame_timed(transformer: nn.Module) -> SkyReelsV2Transformer3DModel:
    """Give the weights of a Wan transformer to diffusers' class that embeds one time per frame, in fp64."""
    if isinstance(transformer, SkyReelsV2Transformer3DModel):
        return transformer
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        made = SkyReelsV2Transformer3DModel.from_config(config)
    made.load_state_dict(transformer.state_dict(), assign=True)
    # The rotary tables are part of no checkpoint.
    rope = made.rope
    made.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(transformer.device)
    return made.eval()
