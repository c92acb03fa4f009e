"""From a prompt to a video: MAGI-1 with FlowCache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import chain

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flowcache import Denoiser, StaircaseSchedule, Trace, Window, cut_window
from flowcache.arguments import check_type
from flowcache.environment import describe_environment, peak_memory_bytes, synchronize
from flowcache.finite import check_finite
from flowcache.noise import BlockNoise
from flowcache.output import VideoOutput, VideoPart
from flowcache.prompts import PromptWarnings, find_losses
from flowcache.state import State

from .captions import clean_prompt, make_captions
from .chunk_model import KVRange, MagiChunkModel, Sampling
from .request import VideoRequest
from .schedule import Euler
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi, Tiling

#: Latent frames whose noise is drawn at once: 384 frames of video, beyond which others come in later draws.
NOISE_FRAMES = 96


class MagiPipeline(DiffusionPipeline):
    """MAGI-1 with chunkwise caching: text-, image- and video-to-video, chunk by chunk.

    Latents and solver run in fp32, the transformer in its own types.

    Args:
        tokenizer, text_encoder: of captions.
        transformer: denoises.
        vae: between pixels and latents.
        tile_frames: frames that the VAE runs at once, also once reloaded; None leaves it as it is.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        transformer: MagiTransformer3DModel,
        vae: AutoencoderKLMagi,
        tile_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.register_to_config(tile_frames=tile_frames)
        if tile_frames is not None:
            vae.enable_tiling(Tiling(frames=tile_frames))
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae
        )
        self.prompt_warnings = PromptWarnings()

    @torch.no_grad()
    def __call__(self, request: VideoRequest, trace: Trace | None = None) -> VideoOutput:
        """Generate a video; takes what ``stream`` takes."""
        trace = trace if trace is not None else Trace()
        return VideoOutput.join(self.stream(request, trace), trace)

    @torch.no_grad()
    def stream(
        self, request: VideoRequest, trace: Trace | None = None, state: State | None = None
    ) -> Iterator[VideoPart]:
        """Generate a video and yield each chunk's new frames as soon as they are clean.

        The video has the length that was asked for. A given image is its first frame; given frames of a video
        are not shown again.

        Args:
            request: what to make.
            trace: filled in with what happens.
            state: of a part that an earlier stream of the same request gave; this one goes on behind it.
                ``trace`` holds what happened until then.
        """
        check_type("request", request, VideoRequest)
        trace = trace if trace is not None else Trace()
        runtime = request.config.runtime_config
        trace.settings |= {
            "prompt": request.prompt,
            "video": asdict(runtime),
            "reuse": request.cache.as_dict(runtime.num_steps),
            "special_tokens": str(request.switches),
        }
        trace.environment = describe_environment(self._execution_device)
        with trace.timer("text"):
            caption = self._encode_prompt(request, trace)
        with trace.timer("encode"):
            given = None if request.prefix is None else self._encode(request.prefix)
            window = self._new_window(request, given)
        schedule = StaircaseSchedule(len(window.chunks), runtime.num_steps, runtime.stride, window.num_given)
        denoiser = self._new_denoiser(request, caption, window, schedule)
        denoiser.trace = trace
        given, held, wanted = (), window.chunks[window.num_given].held, runtime.num_frames
        if state is not None:
            denoiser.load_state_dict(state["denoiser"])
            wanted, held, state = state["wanted"], 0, None  # it may be large
        elif request.shows_prefix:
            # A chunk that is given whole is not denoised, and so does not come from the loop.
            given, held = map(window.latents, range(window.num_given)), 0
        # Closed when decoding fails, so that the progress bar ends before the message.
        with closing(self._clean_latents(denoiser, window, schedule)) as clean:
            yield from self._decode_parts(chain(given, clean), held, wanted, denoiser)

    def _new_denoiser(
        self, request: VideoRequest, caption: Tensor, window: Window, schedule: StaircaseSchedule
    ) -> Denoiser:
        """The loop for a window, with the model, the policy and the forecast of a request."""
        runtime, cache = request.config.runtime_config, request.cache
        null_caption = self.transformer.caption_embed.null_caption.to(caption.device)
        specials = (request.switches, request.special_tokens)
        captions = make_captions(caption, null_caption, len(window.chunks), window.num_given, *specials)
        sampling = Sampling(
            request.timetable,
            request.guidance,
            schedule,
            KVRange(runtime.noise2clean_kvrange, runtime.clean_chunk_kvrange),
        )
        model = MagiChunkModel(
            self.transformer, captions, tuple(window.frame_shape[1:]), sampling, cache.policy.indicator
        )
        return Denoiser(model, cache)

    def _clean_latents(
        self, denoiser: Denoiser, window: Window, schedule: StaircaseSchedule
    ) -> Iterator[Tensor]:
        """Run the loop; latents of each chunk when it is clean."""
        with self.progress_bar(total=len(schedule)) as progress:
            denoiser.on_step = progress.update
            progress.update(len(denoiser.trace.steps))
            chunks = denoiser.run(window, schedule, Euler(denoiser.model.timetable))
            while True:
                with denoiser.trace.timer("denoise"):
                    chunk = next(chunks, None)
                    synchronize(self._execution_device)
                if chunk is None:
                    return
                yield chunk.latents

    def _decode_parts(
        self, latents: Iterable[Tensor], skipped: int, wanted: int, denoiser: Denoiser
    ) -> Iterator[VideoPart]:
        """Decode chunks one by one, up to the length that was asked for.

        Args:
            latents: of the chunks.
            skipped: latent frames of the first one that are not to be shown.
            wanted: frames to show.
            denoiser: where the latents come from.
        """

        def state() -> State:
            return {"wanted": wanted, "denoiser": denoiser.state_dict()}

        trace = denoiser.trace
        for chunk in latents:
            part, skipped = chunk[:, skipped:].clone(), 0
            with trace.timer("decode"):
                frames = self._decode(part)[:, :wanted]
            trace.peak_memory_bytes = max(trace.peak_memory_bytes, peak_memory_bytes(self._execution_device))
            wanted -= frames.shape[1]
            if frames.shape[1]:
                yield VideoPart(frames, part, state if denoiser.in_window else None)

    def _encode_prompt(self, request: VideoRequest, trace: Trace) -> Tensor:
        """Caption tokens without padding, ``[tokens, channels]``, fp32; notes in the trace what is lost."""
        device = self._execution_device
        text = clean_prompt(request.prompt)
        longest = self.transformer.config.caption_max_length
        if not text:
            return torch.zeros(0, self.transformer.config.caption_channels, device=device)
        # Special tokens take the room of the caption's last ones, of which the very last ends the text.
        room = longest - max(request.switches.num_tokens - 1, 0)
        losses = find_losses(request.prompt, text, self.tokenizer, room)
        self.prompt_warnings.warn("prompt", losses, self.tokenizer)
        if losses:
            trace.settings["prompt_losses"] = {"prompt": losses}
        tokens = self.tokenizer(text, max_length=longest, truncation=True, return_tensors="pt")
        encoder = self.text_encoder
        embeds = encoder(tokens.input_ids.to(encoder.device)).last_hidden_state[0]
        return check_finite("text embeddings", embeds.float().to(device))

    def _encode(self, video: Tensor) -> Tensor:
        """Scaled latents ``[channels, frames / 4, height / 8, width / 8]``; one frame gives one."""
        video = video.unsqueeze(0).to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(video).latent_dist
        latents = posterior.mode()[0].float() * self.vae.config.scaling_factor
        return check_finite("latents of the given frames", latents)

    def _decode(self, latents: Tensor) -> Tensor:
        """``[3, 4 frames, height, width]`` in [-1, 1] of scaled latents."""
        latents = latents.unsqueeze(0).to(self.vae.dtype) / self.vae.config.scaling_factor
        # A single frame may be all that a prefix leaves of a chunk, and stands for four all the same.
        video = self.vae.decode(latents, still=False)
        return check_finite("frames from the VAE", video[0].float()).clamp(-1, 1)

    def _new_window(self, request: VideoRequest, given: Tensor | None) -> Window:
        """Noise for all frames, in whole chunks, behind those that are given."""
        runtime, vae = request.config.runtime_config, self.vae.config
        num_given = 0 if given is None else given.shape[1]
        frames = -(-runtime.num_frames // vae.patch_length)
        # An image is the first frame of the video; there has to be one behind it.
        frames = max(frames, num_given + 1) if request.shows_prefix else frames + num_given
        frames = -(-frames // runtime.chunk_width) * runtime.chunk_width
        size = (runtime.video_size_h // vae.patch_size, runtime.video_size_w // vae.patch_size)
        generator = torch.Generator().manual_seed(runtime.seed)
        noise = BlockNoise(generator, (vae.z_chans, frames, *size), NOISE_FRAMES, self._execution_device)
        return cut_window(noise, runtime.chunk_width, given)
