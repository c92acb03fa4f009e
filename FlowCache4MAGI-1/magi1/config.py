"""The official configuration files: three sections of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from flowcache.noise import NoiseOrigin
from flowcache.options import MAX_BYTES
from flowcache.registry import check_options, check_pixels, option, plain_rate
from flowcache.typed import as_type, check_keys, field_types
from flowcache.user_files import expand_path, parse_file

from .guidance import ThreeWayGuidance
from .schedule import Timetable

#: Pixels of a latent along height and width, and frames of one along time.
PIXELS, FRAMES = 8, 4


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a configuration; a value of another type or out of range is a ValueError with its key."""

    def __post_init__(self) -> None:
        check_options(self)

    def require(self, holds: bool, name: str, must_be: str) -> None:
        """Raise a ValueError that names a key, unless a condition holds."""
        if not holds:
            value = getattr(self, name)
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name}: expected {must_be}, got {shown!r}.")


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """The transformer, as ``MagiTransformer3DModel`` takes it.

    Attributes:
        model_name: ignored; accepted for compatibility.
        num_layers: blocks.
        hidden_size, ffn_hidden_size: channels of a token, and between the layers of the feed-forward.
        num_attention_heads, num_query_groups, kv_channels: query heads, key-value heads, channels of a head.
        layernorm_epsilon: of all norms.
        apply_layernorm_1p: norms store their gain minus one.
        x_rescale_factor: factor of latents before the transformer.
        half_channel_vae: latents have half of in_channels.
        params_dtype: type of the weights on CUDA.
        patch_size, t_patch_size: latents to a token, along height and width, and along time.
        in_channels, out_channels: of the latents.
        cond_hidden_ratio, xattn_cond_hidden_ratio: widths of condition and caption over hidden_size.
        caption_channels, caption_max_length: channels and most tokens of a caption.
        cond_gating_ratio: 1.
        gated_linear_unit: SiLU-gated feed-forward (24B).
    """

    model_name: str = "videodit_ardf"
    num_layers: int = option(34, 1, 1000)
    hidden_size: int = option(3072, 1, 2**16)
    ffn_hidden_size: int = option(12288, 1, 2**18)
    num_attention_heads: int = option(24, 1, 1000)
    num_query_groups: int = option(8, 1, 1000)
    kv_channels: int = option(128, 1, 1000)
    layernorm_epsilon: float = option(1e-6, 1e-30, 1)
    apply_layernorm_1p: bool = True
    x_rescale_factor: float = option(1.0, 1e-6, 1e6)
    half_channel_vae: bool = False
    params_dtype: Literal["torch.bfloat16", "torch.float16", "torch.float32"] = "torch.bfloat16"
    patch_size: int = option(2, 1, 64)
    t_patch_size: Literal[1] = 1  # chunks are counted in latent frames
    in_channels: int = option(16, 1, 10**4)
    out_channels: int = option(16, 1, 10**4)
    cond_hidden_ratio: float = option(0.25, 1e-6, 100)
    caption_channels: int = option(4096, 1, 2**16)
    # The last two rows of the null caption mark forwards with text and without.
    caption_max_length: int = option(800, 2, 10**4)
    xattn_cond_hidden_ratio: float = option(1.0, 1e-6, 100)
    cond_gating_ratio: float = option(1.0, 1, 1)
    gated_linear_unit: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        narrow = min(self.cond_hidden_ratio, self.xattn_cond_hidden_ratio)
        self.require(self.hidden_size * narrow >= 1, "hidden_size", f"at least 1 / {narrow:g}, a cond ratio")
        self.require(self.kv_channels % 8 == 0, "kv_channels", "a multiple of 8")
        heads = self.num_attention_heads
        divides = heads % self.num_query_groups == 0
        self.require(divides, "num_query_groups", f"a divisor of num_attention_heads ({heads})")

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights on CUDA."""
        return getattr(torch, self.params_dtype.removeprefix("torch."))


@dataclass(frozen=True, kw_only=True)
class RuntimeSection(Section):
    """The video and its sampling.

    Attributes:
        cfg_number: forwards a step; 1 for distilled models, 3 for base models.
        cfg_t_range: times from which the scales at the same place hold, rising from 0.
        prev_chunk_scales, text_scales: guidance scales of earlier chunks and of the text.
        noise2clean_kvrange: context of a live chunk in chunks, by its progress; empty for all before it.
        clean_chunk_kvrange: context of a clean chunk in chunks; -1 for the last of noise2clean_kvrange.
        clean_t: time at which clean chunks run.
        seed: of the noise; -1 draws one.
        noise: where it is drawn: portable (on the host, the same on every device) or original (on the device, at
            once, as the original draws it).
        num_frames: frames of the video.
        video_size_h, video_size_w: height and width of the video in pixels.
        num_steps: steps of a chunk.
        window_size: chunks that are live at once.
        fps: frames per second.
        chunk_width: latent frames of a chunk.
        t5_pretrained, vae_pretrained: folder of text encoder or VAE, here or on the Hub.
        load: folder of the transformer, here or on the Hub, or a local weight file.
        t5_device: device of the text encoder; cuda is the device of the run.
        scale_factor: factor of the VAE's latents.
        temporal_downsample_factor: frames of a latent.
    """

    cfg_number: int = 1
    cfg_t_range: tuple[float, ...] = option((0.0, 0.0217, 0.1, 0.3, 0.999), 0, 1)
    prev_chunk_scales: tuple[float, ...] = option((1.5, 1.5, 1.5, 1.0, 1.0), 0, 1000)
    text_scales: tuple[float, ...] = option((7.5, 7.5, 7.5, 0.0, 0.0), 0, 1000)
    noise2clean_kvrange: tuple[int, ...] = option((), 1, 10**6)
    clean_chunk_kvrange: int = option(-1, -1, 10**6)
    clean_t: float = option(1.0, 1e-6, 1)
    seed: int = option(1234, 0, 2**63 - 1)
    noise: NoiseOrigin = "portable"
    num_frames: int = option(96, 1, 10**6)
    video_size_h: int = option(720, 0, 2**14)
    video_size_w: int = option(720, 0, 2**14)
    num_steps: int = option(64, 1, 1000)
    window_size: int = option(4, 1, 1000)
    fps: float = 24
    chunk_width: int = option(6, 1, 1000)
    t5_pretrained: str = ""
    t5_device: Literal["cuda", "cpu"] = "cuda"
    vae_pretrained: str = ""
    scale_factor: float = option(0.18215, 1e-6, 1e6)
    temporal_downsample_factor: Literal[4] = 4
    load: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", plain_rate(self.fps))
        super().__post_init__()
        check_pixels(self.num_frames, self.video_size_h, self.video_size_w)
        for name in ("load", "vae_pretrained", "t5_pretrained"):
            expand_path(getattr(self, name), name)
        self.require(self.clean_chunk_kvrange != 0, "clean_chunk_kvrange", "at least 1, or -1")

    @property
    def last_chunk_frame(self) -> int:
        """Frame of the video with which the last chunk starts, behind no given frames."""
        return (self.num_frames - 1) // (FRAMES * self.chunk_width) * FRAMES * self.chunk_width

    @property
    def stride(self) -> int:
        return self.num_steps // self.window_size


#: Keys of several processes, which do not change a video.
DISTRIBUTED = ("distributed_backend", "distributed_timeout_minutes", "pp_size", "cp_size", "cp_strategy")
DISTRIBUTED += ("ulysses_overlap_degree",)


@dataclass(frozen=True, kw_only=True)
class EngineSection(Section):
    """The engine.

    Attributes:
        distributed_backend, distributed_timeout_minutes: of several processes; without CUDA always gloo.
        pp_size: always 1, as layers are not split over processes.
        cp_size: processes that share one video; torchrun starts them.
        cp_strategy, ulysses_overlap_degree, enable_cuda_graph: ignored; accepted for compatibility.
        fp8_quant: quantised checkpoint.
        distill_nearly_clean_chunk_threshold: time above which the oldest chunk also runs without context.
        shortcut_mode: which step of each four a run of 12 steps leaves out.
        distill: distilled checkpoint.
        kv_offload: keys and values of clean chunks in host memory.
    """

    distributed_backend: Literal["nccl", "gloo"] = "nccl"
    distributed_timeout_minutes: int = option(15, 1, 10**5)
    pp_size: int = 1
    cp_size: int = option(1, 1, 2**16)
    cp_strategy: Literal["none", "cp_ulysses", "cp_shuffle_overlap"] = "none"
    ulysses_overlap_degree: int = 1
    fp8_quant: bool = False
    distill_nearly_clean_chunk_threshold: float = option(0.3, -1000, 1000)
    shortcut_mode: str = "8,16,16"
    distill: bool = False
    kv_offload: bool = False
    enable_cuda_graph: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pp_size != 1:
            remedy = f"set cp_size to {max(self.pp_size, 1) * self.cp_size} instead"
            raise ValueError(f"pp_size must be 1, got {self.pp_size}: layers are not split over processes; {remedy}.")


@dataclass(frozen=True, kw_only=True)
class MagiConfig:
    model_config: ModelSection = field(default_factory=ModelSection)
    runtime_config: RuntimeSection = field(default_factory=RuntimeSection)
    engine_config: EngineSection = field(default_factory=EngineSection)

    def __post_init__(self) -> None:
        runtime, engine = self.runtime_config, self.engine_config
        wanted, kind = (1, "distilled") if engine.distill or engine.fp8_quant else (3, "base")
        runtime.require(runtime.cfg_number == wanted, "cfg_number", f"{wanted} for a {kind} model")
        if wanted == 3:
            ThreeWayGuidance(runtime.cfg_t_range, runtime.prev_chunk_scales, runtime.text_scales)
        Timetable(runtime.num_steps, engine.shortcut_mode)
        side = PIXELS * self.model_config.patch_size
        for name in ("video_size_h", "video_size_w"):
            size = getattr(runtime, name)
            runtime.require(size >= 1 and size % side == 0, name, f"a positive multiple of {side}")
        steps, parts = runtime.num_steps, len(runtime.noise2clean_kvrange) or 1
        divisor = f"a divisor of num_steps ({steps})"
        runtime.require(steps % runtime.window_size == 0, "window_size", divisor)
        runtime.require(steps % parts == 0, "noise2clean_kvrange", f"a list whose length is {divisor}")

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Keys of all sections, with the names of their types."""
        return {key.name: key.type for section in fields(cls) for key in fields(section.default_factory)}

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> MagiConfig:
        """Read a JSON file; ``overrides`` replace keys of any section by their bare names."""
        sections = {section.name: section.default_factory for section in fields(cls)}
        content = check_keys(parse_file(path, json.loads, "JSON", most=MAX_BYTES), sections, str(path))
        check_keys(overrides or {}, cls.keys(), "the command line")
        built = {}
        for name, section in sections.items():
            place, kinds = f"{path}, {name}", field_types(section)
            given = dict(check_keys(content.get(name, {}), kinds, place))
            given |= {key: value for key, value in (overrides or {}).items() if key in kinds}
            built[name] = as_type(given, section, place, spelled=True)
        return cls(**built)
