"""From a prompt to a video: MAGI-1 with FlowCache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flowcache import Denoiser, FlowCacheConfig, LoopOptions, StaircaseSchedule, Trace, Window, cut_window
from flowcache.environment import describe_environment, peak_memory_bytes, synchronize
from flowcache.output import VideoOutput, VideoPart

from .captions import CaptionSwitches, SpecialTokens, make_captions
from .chunk_model import KVRange, MagiChunkModel
from .config import MagiConfig
from .guidance import DistilledGuidance, Guidance, ThreeWayGuidance
from .schedule import Euler, Timetable
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi


class MagiPipeline(DiffusionPipeline):
    """MAGI-1 with chunkwise caching: text-, image- and video-to-video, chunk by chunk.

    Latents and solver run in fp32, the transformer in its own types.
    """

    # the cleaning of captions that MAGI-1 was trained with, as the library has it for another model
    bad_punct_regex = PixArtAlphaPipeline.bad_punct_regex
    _clean_caption = PixArtAlphaPipeline._clean_caption
    _clean_captions = PixArtAlphaPipeline._text_preprocessing

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        transformer: MagiTransformer3DModel,
        vae: AutoencoderKLMagi,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae
        )

    @torch.no_grad()
    def __call__(self, *inputs: Any, trace: Trace | None = None, **named: Any) -> VideoOutput:
        """Generate a video; takes what ``stream`` takes."""
        trace = trace if trace is not None else Trace()
        return VideoOutput.join(self.stream(*inputs, trace=trace, **named), trace)

    @torch.no_grad()
    def stream(
        self,
        prompt: str,
        config: MagiConfig,
        cache: FlowCacheConfig | None = None,
        prefix: Tensor | None = None,
        switches: CaptionSwitches | None = None,
        special_tokens: SpecialTokens | None = None,
        discard_nearly_clean: bool = False,
        trace: Trace | None = None,
    ) -> Iterator[VideoPart]:
        """Generate a video and yield each chunk's new frames as soon as they are clean.

        Args:
            prompt: what to show.
            config: the video and its sampling; the model's own section is not read.
            cache: the method; see ``FlowCacheConfig`` for the default.
            prefix: pixels in [-1, 1], ``[3, frames, height, width]``: one frame for image-to-video, a
                multiple of four to continue a video.
            switches: special tokens before the caption.
            special_tokens: their table.
            discard_nearly_clean: leave out the lonely second run of nearly clean chunks.
            trace: filled in with what happens.

        Raises:
            ValueError: the prefix does not fit, or special tokens lack their table.
        """
        cache = cache or FlowCacheConfig()
        trace = trace if trace is not None else Trace()
        runtime = config.runtime_config
        _check_prefix(prefix, config)
        trace.settings |= {"prompt": prompt, "video": asdict(runtime), "reuse": cache.as_dict()}
        trace.environment = describe_environment(self.device)
        with trace.timer("text"):
            caption = self._encode_prompt(prompt)
        with trace.timer("encode"):
            given = None if prefix is None else self._encode(prefix)
            window = self._new_window(config, given)
        null_caption = self.transformer.caption_embed.null_caption
        captions = make_captions(
            caption, null_caption, len(window.chunks), window.num_given, switches, special_tokens
        )
        timetable = _timetable(config)
        model = MagiChunkModel(
            self.transformer,
            captions,
            tuple(window.latents.shape[2:]),
            window.latents.shape[1],
            timetable,
            _guidance(config, discard_nearly_clean),
            KVRange(runtime.noise2clean_kvrange, runtime.clean_chunk_kvrange),
        )
        stride = runtime.num_steps // runtime.window_size
        schedule = StaircaseSchedule(len(window.chunks), runtime.num_steps, stride, window.num_given)
        policy = cache.make_policy(runtime.num_steps)
        options = LoopOptions(clean_pass=cache.clean_pass, compression=cache.compression)
        denoiser = Denoiser(model, policy, cache.make_forecast(), options, trace)
        yield from self._decode_chunks(denoiser, window, schedule, timetable, given, config, trace)

    def _decode_chunks(
        self,
        denoiser: Denoiser,
        window: Window,
        schedule: StaircaseSchedule,
        timetable: Timetable,
        given: Tensor | None,
        config: MagiConfig,
        trace: Trace,
    ) -> Iterator[VideoPart]:
        """Run the loop; decode a chunk when it is clean, without the frames that the caller has already."""
        num_given = 0 if given is None else given.shape[1]
        stride = self.vae.config.patch_length
        # A single given frame stands for itself only; it is shown together with what grows from it.
        skipped = num_given if num_given > 1 else 0
        wanted = config.runtime_config.num_frames + stride * (num_given - skipped)
        with self.progress_bar(total=len(schedule)) as progress:
            denoiser.on_step = progress.update
            chunks = denoiser.run(window, schedule, Euler(timetable))
            while True:
                with trace.timer("denoise"):
                    chunk = next(chunks, None)
                    synchronize(self.device)
                trace.peak_memory_bytes = peak_memory_bytes(self.device)
                if chunk is None:
                    return
                latents = chunk.latents[:, max(0, skipped - chunk.start_frame) :].clone()
                with trace.timer("decode"):
                    frames = self._decode(latents)[:, :wanted]
                wanted -= frames.shape[1]
                if frames.shape[1]:
                    yield VideoPart(frames, latents)

    def _encode_prompt(self, prompt: str) -> Tensor:
        """Caption tokens without padding, ``[tokens, channels]``, fp32."""
        text = self._clean_captions(prompt, clean_caption=True)[0]
        longest = self.transformer.config.caption_max_length
        tokens = self.tokenizer(text, max_length=longest, truncation=True, return_tensors="pt")
        if not text:
            return torch.zeros(0, self.transformer.config.caption_channels, device=self.device)
        encoder = self.text_encoder
        return encoder(tokens.input_ids.to(encoder.device)).last_hidden_state[0].float().to(self.device)

    def _encode(self, video: Tensor) -> Tensor:
        """Scaled latents ``[channels, frames / 4, height / 8, width / 8]``; one frame gives one."""
        posterior = self.vae.encode(video.unsqueeze(0).to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mode()[0].float() * self.vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Tensor:
        """``[3, 4 frames, height, width]`` in [-1, 1] of scaled latents."""
        video = self.vae.decode(latents.unsqueeze(0).to(self.vae.dtype) / self.vae.config.scaling_factor)
        return video[0].float().clamp(-1, 1)

    def _new_window(self, config: MagiConfig, given: Tensor | None) -> Window:
        runtime, vae = config.runtime_config, self.vae.config
        num_given = 0 if given is None else given.shape[1]
        frames = -(-runtime.num_frames // vae.patch_length) + num_given
        frames = -(-frames // runtime.chunk_width) * runtime.chunk_width
        size = (runtime.video_size_h // vae.patch_size, runtime.video_size_w // vae.patch_size)
        generator = torch.Generator().manual_seed(runtime.seed)
        noise = torch.randn((vae.z_chans, frames, *size), generator=generator)
        return cut_window(noise.to(self.device), runtime.chunk_width, given)


def _timetable(config: MagiConfig) -> Timetable:
    runtime, engine = config.runtime_config, config.engine_config
    return Timetable(runtime.num_steps, engine.shortcut_mode, engine.distill, runtime.clean_t)


def _guidance(config: MagiConfig, discard_nearly_clean: bool) -> Guidance:
    runtime, engine = config.runtime_config, config.engine_config
    if runtime.cfg_number == 3:
        return ThreeWayGuidance(runtime.cfg_t_range, runtime.prev_chunk_scales, runtime.text_scales)
    return DistilledGuidance(None if discard_nearly_clean else engine.distill_nearly_clean_chunk_threshold)


def _check_prefix(prefix: Tensor | None, config: MagiConfig) -> None:
    runtime = config.runtime_config
    if prefix is None:
        return
    size = (runtime.video_size_h, runtime.video_size_w)
    if prefix.ndim != 4 or prefix.shape[0] != 3 or prefix.shape[2:] != size:
        raise ValueError(f"prefix must be [3, frames, {size[0]}, {size[1]}], got {list(prefix.shape)}.")
    if prefix.shape[1] != 1 and prefix.shape[1] % runtime.temporal_downsample_factor:
        raise ValueError(
            f"prefix must be one frame or a multiple of {runtime.temporal_downsample_factor}, "
            f"got {prefix.shape[1]} frames."
        )
