"""From a prompt to a video: MAGI-1 with FlowCache."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Generator
from dataclasses import asdict, replace
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.video_processor import VideoProcessor
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from flowcache import Denoiser, FlowCacheConfig, KVStorageConfig, StaircaseSchedule, Trace, Window, cut_window
from flowcache.arguments import GivenFrames, as_frames, check_type
from flowcache.environment import choose_device, describe_environment
from flowcache.files import shipped
from flowcache.finite import check_finite
from flowcache.loading import LoadOptions
from flowcache.methods import check_config
from flowcache.noise import BlockNoise, DeviceNoise, make_generator
from flowcache.parallel import SINGLE, Group, Layout
from flowcache.parallel.sharding import shard_blocks
from flowcache.pipeline import STAGED, FlowCachePipeline, StepCallback, convert_given
from flowcache.prompt_schedule import PromptSchedule, PromptTrack
from flowcache.state import State, VideoPart
from flowcache.typed import check_keys

from .captions import CaptionSwitches, SpecialTokens, clean_prompt, make_captions
from .chunk_model import KVRange, MagiChunkModel, Sampling
from .config import FRAMES, EngineSection, MagiConfig, RuntimeSection
from .guidance import PREVIOUS_WEIGHT, DistilledGuidance, ThreeWayGuidance
from .methods import TRAITS, method_config
from .model_source import FOLDERS, SMALL, ModelSource, load_components, resolve_model
from .schedule import Timetable
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi, Tiling

logger = logging.getLogger(__name__)

#: Latent frames whose noise is drawn at once: 384 frames of video.
NOISE_FRAMES = 96

#: Configuration that ``save_pretrained`` writes beside the weights.
CONFIG_FILE = "config.json"

#: Keys of the configuration by diffusers' names of arguments.
_KEYS = {"height": "video_size_h", "width": "video_size_w", "num_inference_steps": "num_steps"}

#: Arguments of ``stream`` that ``__call__`` hands on.
_HANDED_ON = ("switches", "special_tokens", "discard_nearly_clean", "previous_weight")


class MagiPipeline(FlowCachePipeline, DiffusionPipeline):
    """MAGI-1 with chunkwise caching: text-, image- and video-to-video, chunk by chunk.

    Latents and solver run in fp32, the transformer in its own types. The VAE runs ``tile_frames`` at once, a
    setting that is saved with the pipeline.
    """

    #: Configuration of the model, with the default settings of its videos.
    model_defaults = MagiConfig(engine_config=EngineSection(distill=True))

    flowcache_config, flowcache_traits = method_config(), TRAITS
    clean_prompt = staticmethod(clean_prompt)

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
        self.register_modules(tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae)
        self.video_processor = VideoProcessor()

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **named: Any) -> Self:
        """Load the small checkpoint (``small``), a folder laid out as it, or one of ``save_pretrained``.

        Weights are on the CPU, in fp32 without ``torch_dtype``. ``named`` are arguments of diffusers or, for
        the small checkpoint's layout, keys of its configuration.
        """
        folder, torch_dtype = SMALL if folder == "small" else Path(folder), named.pop("dtype", torch_dtype)
        config_file = folder / CONFIG_FILE
        if config_file.is_file() and not (folder / cls.config_name).is_file():
            places = zip(FOLDERS, (folder, folder / "vae", folder / "t5"), strict=True)
            named |= {name: str(place) for name, place in places}
            pipeline = cls.from_config_file(config_file, "cpu", **named)
            for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
                nn.Module.to(part, torch_dtype)  # diffusers warns of parts that ours keeps in fp32
            return pipeline
        pipeline = super().from_pretrained(folder, dtype=torch_dtype, **named)
        if config_file.is_file():
            pipeline.model_defaults = MagiConfig.from_file(config_file)
        return pipeline

    @classmethod
    def from_config_file(cls, config_file: str | Path, device: torch.device | str | None = None, **keys: Any) -> Self:
        """Load the official weights that a configuration names, as ``load_pipeline`` does.

        Args:
            config_file: JSON in three sections, or one of ``FlowCache4MAGI-1/config``.
            device: where to run; None: CUDA if there is any.
            **keys: of any section, in place of the file's: ``load="sand-ai/MAGI-1/ckpt/magi/4.5B_distill"``; and
                fields of ``LoadOptions``: ``quantize="int8"``.
        """
        path = Path(config_file) if Path(config_file).is_file() else shipped("FlowCache4MAGI-1") / config_file
        options = {name: keys.pop(name) for name in LoadOptions.__dataclass_fields__ if name in keys}
        return load_pipeline(resolve_model(path, keys, "official", device), device, **options)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does, with the model's configuration."""
        super().save_pretrained(save_directory, *args, **kwargs)
        content = asdict(self.model_defaults)
        content["runtime_config"] |= dict.fromkeys(FOLDERS, "")
        (Path(save_directory) / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")

    def prepare(
        self,
        config: MagiConfig | None = None,
        image: GivenFrames | None = None,
        video: GivenFrames | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], float, int]:
        """Make arguments of ``stream`` of a call's; also returns frames per second and seed.

        Args:
            config: settings of the videos; None: the model's own.
            image: first frame of the video.
            video: frames to continue, which are not repeated: all but at most the first three.
            **options: special tokens and guidance, as of ``stream``, or as of ``make_config``.
        """
        given = {name: options.pop(name) for name in _HANDED_ON if name in options}
        given["config"] = self.make_config(config, **options)
        runtime = given["config"].runtime_config
        frames = convert_given(runtime.video_size_h, runtime.video_size_w, image=image, video=video)
        if "image" in frames:
            given["prefix"] = frames["image"]
        elif "video" in frames:
            if (count := frames["video"].shape[1]) < FRAMES:
                raise ValueError(f"video: expected at least {FRAMES} frames, got {count}; or give an image.")
            given["prefix"] = frames["video"][:, count % FRAMES :]
        return given, runtime.fps, runtime.seed

    @torch.no_grad()
    def stream(
        self,
        prompt: str | PromptSchedule | None = None,
        config: MagiConfig | None = None,
        cache: FlowCacheConfig | None = None,
        prefix: GivenFrames | None = None,
        trace: Trace | None = None,
        state: State | None = None,
        *,
        switches: CaptionSwitches | None = None,
        special_tokens: SpecialTokens | None = None,
        discard_nearly_clean: bool = False,
        previous_weight: float = PREVIOUS_WEIGHT,
        prompt_embeds: Tensor | None = None,
        decode: bool = True,
        on_step_end: StepCallback | None = None,
        **changes: Any,
    ) -> Generator[VideoPart, str | None, None]:
        """Generate a video and yield each chunk's new frames as soon as they are clean.

        ``stream.send(prompt)`` in place of ``next(stream)`` gives a prompt to all chunks that have not started, and
        returns the next part; all processes send the same. A prompt that is refused ends the stream.

        Args:
            prefix: ``[3, frames, height, width]`` in [-1, 1], or images or uint8 arrays (``as_frames``): one
                frame, which is the first of the video, or a multiple of four, which are not repeated.
            state: state of a part of an earlier stream with the same arguments; this one continues behind it,
                and ``trace`` holds what happened until then.
            switches, special_tokens: special tokens before the caption, and their table.
            discard_nearly_clean: no extra forward pass without context of a nearly clean chunk.
            previous_weight: share of the velocity that sees the chunks before, beside that pass.
            prompt_embeds: ``[tokens, width]`` in place of a prompt.
            decode: False leaves the frames of the parts empty.
            on_step_end: ``callback_on_step_end`` of ``__call__``.
            **changes: as of ``make_config``.
        """
        config, cache = self.make_config(config, **changes), cache or self.flowcache_config
        check_type("cache", cache, FlowCacheConfig)
        check_config(cache, TRAITS)
        runtime, engine = config.runtime_config, config.engine_config
        sizes = self.transformer.config
        heads = sizes.num_attention_heads, sizes.num_query_groups
        processes = Layout.plan(self.process_group, *heads, cfg_size=self.cfg_size)
        if engine.kv_offload:
            cache = replace(cache, storage=KVStorageConfig(bits=cache.storage and cache.storage.bits, offload=True))
        if prefix is not None:
            prefix = as_frames("prefix", prefix, runtime.video_size_h, runtime.video_size_w)
            if (count := prefix.shape[1]) != 1 and count % FRAMES:
                raise ValueError(f"prefix: expected one frame or a multiple of {FRAMES}, got {count}.")
        # An image is the first frame of the video.
        shows_prefix = prefix is not None and prefix.shape[1] == 1
        trace, device = trace or Trace(), self._execution_device
        switches, reuse = switches or CaptionSwitches(), cache.as_dict(runtime.num_steps)
        if isinstance(prompt, PromptSchedule):
            prompt.check(clean_prompt, runtime)
        prompts = PromptTrack(prompt, runtime.fps, lambda frame: ceil(frame / FRAMES))
        if state is not None:
            prompts.load_state_dict(state["prompts"])
        trace.settings |= {"prompt": prompt and str(prompt), "video": asdict(runtime), "reuse": reuse}
        trace.settings["special_tokens"] = str(switches)
        trace.environment = describe_environment(device)
        first, *others = prompts.prompts
        if prompt_embeds is not None and prompt_embeds.shape[1:] != (sizes.caption_channels,):
            expected = f"expected [tokens, {sizes.caption_channels}]"
            raise ValueError(f"prompt_embeds: {expected}, got {list(prompt_embeds.shape)}.")

        def embed(text: str | None, name: str = "prompt", given: Tensor | None = None) -> Tensor:
            if given is None:
                given = self._share_text(lambda: self.encode_prompt(text, switches.num_tokens, trace, name)[0])
            return check_finite("text embeddings", given.float().to(device))

        with self._stage("text", "text_encoder" if others or prompt_embeds is None else None, trace):
            texts = [embed(first, given=prompt_embeds)]
            texts += [embed(text, f"prompt {i}") for i, text in enumerate(others, 2)]
        with self._stage("encode", None if prefix is None else "vae", trace):
            given = None if prefix is None else self._encode(prefix)
            window = self._new_window(config, given, shows_prefix)
        num_chunks, num_given = len(window.chunks), window.num_given
        schedule = StaircaseSchedule(num_chunks, runtime.num_steps, runtime.stride, num_given)
        timetable = Timetable(runtime.num_steps, engine.shortcut_mode, engine.distill, runtime.clean_t)
        if runtime.cfg_number == 3:
            guidance = ThreeWayGuidance(runtime.cfg_t_range, runtime.prev_chunk_scales, runtime.text_scales)
        else:
            threshold = None if discard_nearly_clean else engine.distill_nearly_clean_chunk_threshold
            guidance = DistilledGuidance(threshold, previous_weight)
        kv_range = KVRange(runtime.noise2clean_kvrange, runtime.clean_chunk_kvrange)
        null_caption = self.transformer.caption_embed.null_caption.to(device)
        of_video = null_caption, num_chunks, num_given, switches, special_tokens
        captions = [make_captions(text, *of_video) for text in texts]
        if prefix is not None and not shows_prefix:
            prompts.offset = -window.num_prefix
        if state is None and window.chunks[-1].start + prompts.offset < prompts.last_start:
            logger.warning("prompt_schedule: the last prompt is not shown, as given frames let chunks start earlier.")
        sampling, size = Sampling(timetable, guidance, schedule, kv_range), tuple(window.frame_shape[1:])
        with self._on_device("transformer"), self.progress_bar(total=len(schedule)) as progress:
            with self._stage("denoise", "transformer", trace):
                options = {"indicator": cache.policy.indicator, "processes": processes}
                model = MagiChunkModel(self.transformer, captions[0], size, sampling, **options)
                for more in captions[1:]:
                    model.add_text(more)
            denoiser = Denoiser(model, cache, trace, prompts=prompts)
            shown, hidden, wanted = (), window.chunks[num_given].held, runtime.num_frames
            if state is not None:
                denoiser.load_state_dict(state["denoiser"])
                wanted, hidden, state = state["wanted"], 0, None  # it may be large
            elif shows_prefix:
                # A chunk that is given whole is not denoised, and so does not come from the loop.
                shown, hidden = range(num_given), 0

            def save_state() -> State:
                return {"wanted": wanted, "denoiser": denoiser.state_dict(), "prompts": prompts.state_dict()}

            def add_text(name: str, text: str) -> None:
                model.add_text(make_captions(embed(text, name), *of_video))

            if decode and self.process_group.is_first and self.process_group.size > 1:
                tiles = prod(map(len, self.vae.cut((runtime.chunk_width, *size))))
                logger.info("VAE: %d tiles of each chunk on %d processes", tiles, self.process_group.size)
            switch = partial(self._switch_prompt, denoiser, window, schedule, add_text)
            progress.update(len(trace.steps))
            for latents in self._denoise(denoiser, window, schedule, timetable, progress, on_step_end, switch, shown):
                # Clone, so that a slice does not keep the full tensor alive.
                latents, hidden = latents[:, hidden:].clone(), 0
                count = min(wanted, FRAMES * latents.shape[1])
                with self._stage("decode", "vae" if decode else None, trace):
                    frames = self._decode(latents)[:, :count] if decode else latents.new_empty(3, 0, 0, 0)
                wanted -= count
                if count:
                    sent = yield VideoPart(frames, latents, save_state if denoiser.in_window else None)
                    if sent is not None:
                        switch(sent)

    def make_config(self, config: MagiConfig | None = None, **changes: Any) -> MagiConfig:
        """Apply changes to a configuration, or to the model's own.

        Args:
            **changes: ``height``, ``width``, ``num_inference_steps``; ``guidance_scale`` of base models; and
                keys of ``runtime_config``: ``num_frames``, ``fps``, ``window_size``, ``seed``, ...
        """
        config = self.model_defaults if config is None else config
        check_type("config", config, MagiConfig)
        check_keys(changes, (*RuntimeSection.__dataclass_fields__, *_KEYS, "guidance_scale"), "arguments of MAGI-1")
        runtime, changes = config.runtime_config, {_KEYS.get(k, k): v for k, v in changes.items()}
        if (scale := changes.pop("guidance_scale", None)) is not None:
            if runtime.cfg_number == 1:
                raise ValueError("guidance_scale: expected a base model, got a distilled one; leave it out.")
            # The official scales are 0 at times near clean.
            changes["text_scales"] = tuple(scale if own else own for own in runtime.text_scales)
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if v is not None}
        return replace(config, runtime_config=replace(runtime, **given))

    def encode_prompt(
        self, prompt: str, num_special: int = 0, trace: Trace | None = None, name: str = "prompt"
    ) -> Tensor:
        """Embed a prompt without padding: ``[1, tokens, channels]``, fp32; notes lost words in the trace."""
        sizes, device = self.transformer.config, self._execution_device
        # Special tokens displace the last tokens of the caption, of which the very last only ends the text.
        room = sizes.caption_max_length - max(num_special - 1, 0)
        text = self._clean(name, prompt, room, trace or Trace())
        if not text:
            return torch.zeros(1, 0, sizes.caption_channels, device=device)
        limit = sizes.caption_max_length
        tokens = self.tokenizer(text, max_length=limit, truncation=True, return_tensors="pt").input_ids
        embeds = self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state
        return embeds.float().to(device)

    def _encode(self, video: Tensor) -> Tensor:
        """Scaled latents ``[channels, frames / 4, height / 8, width / 8]``; one frame gives one."""
        video = video.unsqueeze(0).to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(video, self.process_group).latent_dist
        latents = posterior.mode()[0].float() * self.vae.config.scaling_factor
        return check_finite("latents of the given frames", latents)

    def _decode(self, latents: Tensor) -> Tensor:
        """Video ``[3, 4 frames, height, width]`` in [-1, 1] of scaled latents."""
        latents = latents.unsqueeze(0).to(self.vae.dtype) / self.vae.config.scaling_factor
        # A single frame may be all that a prefix leaves of a chunk, and stands for four all the same.
        video = self.vae.decode(latents, still=False, group=self.process_group)
        return check_finite("frames from the VAE", video[0].float()).clamp(-1, 1)

    def _new_window(self, config: MagiConfig, given: Tensor | None, shows_prefix: bool) -> Window:
        """Noise for all frames, in whole chunks, behind the given ones."""
        runtime, vae = config.runtime_config, self.vae.config
        num_given = 0 if given is None else given.shape[1]
        frames = -(-runtime.num_frames // vae.patch_length)
        # At least one frame follows an image.
        frames = max(frames, num_given + 1) if shows_prefix else frames + num_given
        # The original rounds down, and counts an image beside the frames.
        original = runtime.num_frames // vae.patch_length + num_given
        frames, original = (-(-n // runtime.chunk_width) * runtime.chunk_width for n in (frames, original))
        size = (runtime.video_size_h // vae.patch_size, runtime.video_size_w // vae.patch_size)
        shape, device = (vae.z_chans, frames, *size), self._execution_device
        generator = make_generator(runtime.noise, runtime.seed, device)
        if runtime.noise == "original":
            noise = DeviceNoise(generator, shape, max(frames, original), device)
        else:
            noise = BlockNoise(generator, shape, NOISE_FRAMES, device)
        return cut_window(noise, runtime.chunk_width, given)


def load_pipeline(
    source: ModelSource,
    device: torch.device | str | None = None,
    offload: Collection[str] | bool = False,
    group: Group = SINGLE.world,
    **options: Any,
) -> MagiPipeline:
    """Load a model as a pipeline; ``options`` are fields of ``LoadOptions``.

    ``offload``: all components, or those named, are in host memory while they are idle. With ``t5_device`` cpu, the
    text encoder runs there. Of a ``group`` of processes that make each video together, the first alone has it. Errors
    as of ``load_components``.
    """
    offload = (STAGED if offload else ()) if isinstance(offload, bool) else offload
    on_cpu = {"text_encoder"} if source.config.runtime_config.t5_device == "cpu" else set()
    loading = LoadOptions(offload="transformer" in offload, **options)
    on_host = {*offload, *on_cpu, *({"transformer"} if loading.shard_weights else ())}
    pipeline = MagiPipeline(**load_components(source, device, on_host, loading, group.is_first))
    pipeline.model_defaults = source.config
    if loading.shard_weights:
        shard_blocks(pipeline.transformer.blocks, group, choose_device(device))
        pipeline.transformer.to(choose_device(device))
    if loading.compile:
        pipeline.transformer.compile_repeated_blocks()
    if offload:
        pipeline.enable_stage_offload(device, set(offload) - on_cpu)
    return pipeline
