"""The official configuration files: three sections of JSON, and FlowCache's options in YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from flowcache.knobs import only_knob
from flowcache.kv.original import WEIGHTINGS
from flowcache.kv.quantized import BITS
from flowcache.limits import check_limits, check_pixels
from flowcache.rates import plain_rate
from flowcache.user_files import expand_path

from .config_files import COMMAND_LINE, build, check_keys, check_mapping, read_file
from .guidance import ThreeWayGuidance
from .schedule import Timetable

#: Pixels of a latent along height and width, and frames of one along time.
PIXELS, FRAMES = 8, 4

MODEL_LIMITS = {
    "num_layers": (1, 1000),
    "hidden_size": (1, 2**16),
    "ffn_hidden_size": (1, 2**18),
    "num_attention_heads": (1, 1000),
    "num_query_groups": (1, 1000),
    "kv_channels": (1, 1000),
    "layernorm_epsilon": (1e-30, 1),
    "x_rescale_factor": (1e-6, 1e6),
    "patch_size": (1, 64),
    "in_channels": (1, 10**4),
    "out_channels": (1, 10**4),
    "cond_hidden_ratio": (1e-6, 100),
    "caption_channels": (1, 2**16),
    # its last two rows say whether a forward shows text
    "caption_max_length": (2, 10**4),
    "xattn_cond_hidden_ratio": (1e-6, 100),
}
RUNTIME_LIMITS = {
    "num_frames": (1, 10**6),
    "video_size_h": (0, 2**14),
    "video_size_w": (0, 2**14),
    "num_steps": (1, 1000),
    "seed": (0, 2**63 - 1),
    "window_size": (1, 1000),
    "chunk_width": (1, 1000),
    "cfg_t_range": (0, 1),
    "prev_chunk_scales": (0, 1000),
    "text_scales": (0, 1000),
    "noise2clean_kvrange": (1, 10**6),
    "clean_chunk_kvrange": (-1, 10**6),
    "scale_factor": (1e-6, 1e6),
}
OPTION_LIMITS = {
    "rel_l1_thresh": (0, 1000),
    "interval": (1, 1000),
    "warmup_steps": (0, 1000),
    "total_cache_chunk_nums": (1, 10**6),
    "mix_lambda": (0, 1),
    "power": (0.001, 1000),
}

#: FlowCache's options that say which steps are skipped, the threshold first.
RULES = ("rel_l1_thresh", "interval")

#: Those that say how the cache is compressed; the last two weight single tokens.
COMPRESSION = ("total_cache_chunk_nums", "compress_strategy", "query_granularity", "mix_lambda")
COMPRESSION += ("score_weighting_method", "power")

PARAMS_DTYPES = ("torch.bfloat16", "torch.float16", "torch.float32")

#: Keys of the engine's section that are read and have no effect yet.
UNUSED = ("pp_size", "cp_size", "ulysses_overlap_degree", "enable_cuda_graph")


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The transformer, as ``MagiTransformer3DModel`` takes it; ``model_name`` has no effect.

    Raises:
        ValueError: one sentence that names the key and what it must be.
    """

    model_name: str = "videodit_ardf"
    num_layers: int = 34
    hidden_size: int = 3072
    ffn_hidden_size: int = 12288
    num_attention_heads: int = 24
    num_query_groups: int = 8
    kv_channels: int = 128
    layernorm_epsilon: float = 1e-6
    apply_layernorm_1p: bool = True
    x_rescale_factor: float = 1.0
    half_channel_vae: bool = False
    params_dtype: str = "torch.bfloat16"
    patch_size: int = 2
    t_patch_size: int = 1
    in_channels: int = 16
    out_channels: int = 16
    cond_hidden_ratio: float = 0.25
    caption_channels: int = 4096
    caption_max_length: int = 800
    xattn_cond_hidden_ratio: float = 1.0
    cond_gating_ratio: float = 1.0
    gated_linear_unit: bool = False

    def __post_init__(self) -> None:
        check_limits(self, MODEL_LIMITS)
        _check(self.params_dtype in PARAMS_DTYPES, "params_dtype", self, " or ".join(PARAMS_DTYPES))
        narrow = min(self.cond_hidden_ratio, self.xattn_cond_hidden_ratio)
        _check(self.hidden_size * narrow >= 1, "hidden_size", self, f"at least 1 / {narrow:g}, a cond ratio")
        _check(self.kv_channels % 8 == 0, "kv_channels", self, "a multiple of 8")
        heads, groups = self.num_attention_heads, self.num_query_groups
        _check(heads % groups == 0, "num_query_groups", self, f"a divisor of num_attention_heads ({heads})")
        _check(self.t_patch_size == 1, "t_patch_size", self, "1: chunks are counted in latent frames")
        _check(self.cond_gating_ratio == 1, "cond_gating_ratio", self, "1, as in all official models")


@dataclass(frozen=True, kw_only=True)
class RuntimeSection:
    """The video and its sampling.

    Attributes:
        cfg_number: forwards a step: 1 for distilled models, 3 for base models.
        cfg_t_range, prev_chunk_scales, text_scales: guidance scales by time.
        noise2clean_kvrange: chunks that a noisy chunk sees, by its progress; empty: all before it.
        clean_chunk_kvrange: chunks that a clean one sees; -1: as the last of those. Without those, only given
            chunks read it.
        clean_t: time at which finished chunks are shown.
        num_frames: pixel frames to make.
        video_size_h, video_size_w: pixels.
        num_steps, window_size: steps of a chunk, and chunks that are on their way at once.
        chunk_width: latent frames of a chunk.
        t5_pretrained, vae_pretrained, load: folders of the text encoder, the VAE and the transformer.
        t5_device: ``cpu``, or ``cuda``: where the rest runs.
        scale_factor: latents that the transformer sees are those of the VAE times this.
        temporal_downsample_factor: pixel frames of a latent one; 4 in all models.

    Raises:
        ValueError: one sentence that names the key and what it must be.
    """

    cfg_number: int = 1
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)
    noise2clean_kvrange: tuple[int, ...] = ()
    clean_chunk_kvrange: int = -1
    clean_t: float = 1.0
    seed: int = 1234
    num_frames: int = 96
    video_size_h: int = 720
    video_size_w: int = 720
    num_steps: int = 64
    window_size: int = 4
    fps: float = 24
    chunk_width: int = 6
    t5_pretrained: str = ""
    t5_device: str = "cuda"
    vae_pretrained: str = ""
    scale_factor: float = 0.18215
    temporal_downsample_factor: int = FRAMES
    load: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", plain_rate(self.fps))
        check_limits(self, RUNTIME_LIMITS)
        check_pixels(self.num_frames, self.video_size_h, self.video_size_w)
        for name in ("load", "vae_pretrained", "t5_pretrained"):
            expand_path(getattr(self, name), name)
        _check(0 < self.clean_t <= 1, "clean_t", self, "above 0 and at most 1")
        factor = self.temporal_downsample_factor
        _check(factor == FRAMES, "temporal_downsample_factor", self, f"{FRAMES}, as the autoencoder has it")
        _check(self.t5_device in ("cpu", "cuda"), "t5_device", self, "cpu or cuda")
        clean = self.clean_chunk_kvrange
        _check(
            clean == -1 or clean >= 1,
            "clean_chunk_kvrange",
            self,
            "at least 1, or -1 for the last of noise2clean_kvrange",
        )

    @property
    def stride(self) -> int:
        """Steps by which a chunk lags behind the one before it."""
        return self.num_steps // self.window_size

    @property
    def sampling(self) -> dict[str, int | float]:
        """What bends the path of a chunk from noise to clean; plans are found by it."""
        return {"steps": self.num_steps, "stride": self.stride, "guidance": self.cfg_number}


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """How it is run. One device runs everything so far: see ``UNUSED``.

    Attributes:
        kv_offload: keep keys and values of finished chunks in host memory.

    Raises:
        ValueError: one sentence that names the key and what it must be.
    """

    distributed_backend: str = "nccl"
    distributed_timeout_minutes: int = 15
    pp_size: int = 1
    cp_size: int = 1
    cp_strategy: str = "none"
    ulysses_overlap_degree: int = 1
    fp8_quant: bool = False
    distill_nearly_clean_chunk_threshold: float = 0.3
    shortcut_mode: str = "8,16,16"
    distill: bool = False
    kv_offload: bool = False
    enable_cuda_graph: bool = False

    def __post_init__(self) -> None:
        check_limits(self, {"distill_nearly_clean_chunk_threshold": (-1000, 1000)})

    @property
    def unused(self) -> list[str]:
        """Keys that ask for something that has no effect yet."""
        plain = EngineSection()
        return [name for name in UNUSED if getattr(self, name) != getattr(plain, name)]


@dataclass(frozen=True, kw_only=True)
class MagiConfig:
    """A whole configuration file."""

    model_config: ModelSection = field(default_factory=ModelSection)
    runtime_config: RuntimeSection = field(default_factory=RuntimeSection)
    engine_config: EngineSection = field(default_factory=EngineSection)

    def __post_init__(self) -> None:
        runtime, engine = self.runtime_config, self.engine_config
        wanted = 1 if engine.distill or engine.fp8_quant else 3
        if runtime.cfg_number != wanted:
            raise ValueError(
                f"cfg_number must be {wanted} for a {'distilled' if wanted == 1 else 'base'} model, "
                f"got {runtime.cfg_number}."
            )
        if wanted == 3:
            ThreeWayGuidance(runtime.cfg_t_range, runtime.prev_chunk_scales, runtime.text_scales)
        Timetable(runtime.num_steps, engine.shortcut_mode)
        side = PIXELS * self.model_config.patch_size
        for name in ("video_size_h", "video_size_w"):
            size = getattr(runtime, name)
            _check(size >= 1 and size % side == 0, name, runtime, f"a positive multiple of {side}")
        if runtime.num_steps % runtime.window_size:
            raise ValueError(
                f"window_size must divide num_steps ({runtime.num_steps}), got {runtime.window_size}."
            )
        ranges = len(runtime.noise2clean_kvrange)
        if ranges and runtime.num_steps % ranges:
            raise ValueError(
                f"noise2clean_kvrange must have a length that divides num_steps ({runtime.num_steps}), "
                f"got {ranges} entries."
            )

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Keys of all sections, with the names of their types."""
        return {key.name: key.type for section in _sections().values() for key in fields(section)}

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> MagiConfig:
        """Read a JSON file; ``overrides`` replace keys of any section by their bare names.

        Raises:
            ValueError: the file is missing or no JSON, or a key or value is wrong; the key is named.
        """
        content, overrides = read_file(path, json.loads, "JSON"), dict(overrides or {})
        sections = _sections()
        check_keys(content, sections, f"{path}")
        check_keys(overrides, cls.keys(), COMMAND_LINE)
        built = {}
        for name, kind in sections.items():
            where = f"{path}, {name}"
            section = check_mapping(content.get(name, {}), where)
            own = {key: value for key, value in overrides.items() if key in kind.__dataclass_fields__}
            built[name] = build(kind, section, where, own)
        return cls(**built)


@dataclass(frozen=True, kw_only=True)
class FlowCacheOptions:
    """FlowCache's options for MAGI-1, as in the original's YAML files, and some of ours.

    Attributes:
        rel_l1_thresh: accumulated relative change at which a chunk is computed again; 0 never reuses. None:
            what the preset says.
        interval: ours; steps from one computed step to the next, instead of ``rel_l1_thresh``.
        warmup_steps: steps of a chunk that are always computed; None: what the preset says.
        discard_nearly_clean_chunk: leave out the second, lonely run of the oldest chunk when it is nearly
            clean.
        compress_kv_cache: keep the keys and values of finished chunks within a budget.
        total_cache_chunk_nums: chunks that the cache holds then.
        compress_strategy, query_granularity: ``token``, ``frame`` or ``chunk``.
        mix_lambda: weight of importance; the rest is that of redundancy.
        score_weighting_method, power: weighting of scores by place.
        kv_bits: ours; keep keys and values of finished chunks in 8 or 4 bits; None: as the model makes them.
        log, print_peak_memory: of no effect: the trace always holds every decision, and the last line of a
            run always says how much memory was needed.

    Raises:
        ValueError: one sentence that names the key and what it must be.
    """

    rel_l1_thresh: float | None = None
    interval: int | None = None
    warmup_steps: int | None = None
    discard_nearly_clean_chunk: bool = False
    compress_kv_cache: bool = False
    total_cache_chunk_nums: int = 8
    compress_strategy: str = "token"
    query_granularity: str = "frame"
    mix_lambda: float = 0.07
    score_weighting_method: str = "no_weight"
    power: float = 3.0
    kv_bits: int | None = None
    log: bool = False
    print_peak_memory: bool = False

    def __post_init__(self) -> None:
        check_limits(self, OPTION_LIMITS)
        only_knob({name: getattr(self, name) for name in RULES})
        for name in ("compress_strategy", "query_granularity"):
            choices = ("token", "frame", "chunk")
            _check(getattr(self, name) in choices, name, self, "token, frame or chunk")
        method, known = "score_weighting_method", ", ".join(WEIGHTINGS)
        _check(getattr(self, method) in WEIGHTINGS, method, self, f"one of {known}")
        _check(self.kv_bits in (None, *BITS), "kv_bits", self, "8 or 4")

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> FlowCacheOptions:
        """Read a YAML file; ``overrides`` replace its keys.

        Raises:
            ValueError: the file is missing or no YAML, or a key or value is wrong; the key is named.
        """
        return build(cls, read_file(path, yaml.safe_load, "YAML"), str(path), overrides or {})


def _sections() -> dict[str, type]:
    return {section.name: section.default_factory for section in fields(MagiConfig)}


def _check(holds: bool, name: str, section: Any, must_be: str) -> None:
    if not holds:
        value = getattr(section, name)
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"{name} must be {must_be}, got {shown!r}.")
