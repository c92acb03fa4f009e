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

#: FlowCache's options that say which steps are skipped, the threshold first.
RULES = ("rel_l1_thresh", "interval")

#: Those that say how the cache is compressed; the last two weight single tokens.
COMPRESSION = ("total_cache_chunk_nums", "compress_strategy", "query_granularity", "mix_lambda")
COMPRESSION += ("score_weighting_method", "power")

#: Keys of the engine's section that are accepted and ignored.
UNUSED = ("pp_size", "cp_size", "ulysses_overlap_degree", "enable_cuda_graph")


def _between(least: float, most: float, default: Any = None) -> Any:
    """A field whose numbers have these limits, which catch typos and absurd sizes."""
    return field(default=default, metadata={"limits": (least, most)})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a configuration; a value of another type or out of range is a ValueError with its key."""

    def __post_init__(self) -> None:
        limited = {key.name: key.metadata["limits"] for key in fields(self) if key.metadata}
        check_limits(self, limited)

    def require(self, holds: bool, name: str, must_be: str) -> None:
        """Raise a ValueError that names a key, unless a condition holds."""
        if not holds:
            value = getattr(self, name)
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name} must be {must_be}, got {shown!r}.")


@dataclass(frozen=True, kw_only=True)
class ModelSection(Section):
    """The transformer, as ``MagiTransformer3DModel`` takes it; ``model_name`` is ignored."""

    model_name: str = "videodit_ardf"
    num_layers: int = _between(1, 1000, 34)
    hidden_size: int = _between(1, 2**16, 3072)
    ffn_hidden_size: int = _between(1, 2**18, 12288)
    num_attention_heads: int = _between(1, 1000, 24)
    num_query_groups: int = _between(1, 1000, 8)
    kv_channels: int = _between(1, 1000, 128)
    layernorm_epsilon: float = _between(1e-30, 1, 1e-6)
    apply_layernorm_1p: bool = True
    x_rescale_factor: float = _between(1e-6, 1e6, 1.0)
    half_channel_vae: bool = False
    params_dtype: str = "torch.bfloat16"
    patch_size: int = _between(1, 64, 2)
    t_patch_size: int = 1
    in_channels: int = _between(1, 10**4, 16)
    out_channels: int = _between(1, 10**4, 16)
    cond_hidden_ratio: float = _between(1e-6, 100, 0.25)
    caption_channels: int = _between(1, 2**16, 4096)
    # The last two rows of the null caption mark forwards with text and without.
    caption_max_length: int = _between(2, 10**4, 800)
    xattn_cond_hidden_ratio: float = _between(1e-6, 100, 1.0)
    cond_gating_ratio: float = 1.0
    gated_linear_unit: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        dtypes = ("torch.bfloat16", "torch.float16", "torch.float32")
        self.require(self.params_dtype in dtypes, "params_dtype", " or ".join(dtypes))
        narrow = min(self.cond_hidden_ratio, self.xattn_cond_hidden_ratio)
        self.require(self.hidden_size * narrow >= 1, "hidden_size", f"at least 1 / {narrow:g}, a cond ratio")
        self.require(self.kv_channels % 8 == 0, "kv_channels", "a multiple of 8")
        heads = self.num_attention_heads
        divides = heads % self.num_query_groups == 0
        self.require(divides, "num_query_groups", f"a divisor of num_attention_heads ({heads})")
        self.require(self.t_patch_size == 1, "t_patch_size", "1: chunks are counted in latent frames")
        self.require(self.cond_gating_ratio == 1, "cond_gating_ratio", "1, as in all official models")


@dataclass(frozen=True, kw_only=True)
class RuntimeSection(Section):
    """The video and its sampling.

    Attributes:
        cfg_number: forwards a step: 1 for distilled models, 3 for base models.
        cfg_t_range, prev_chunk_scales, text_scales: guidance scales by time.
        noise2clean_kvrange: context of a live chunk in chunks, by its progress; empty: all before it.
        clean_chunk_kvrange: context of a clean chunk; -1: the last of ``noise2clean_kvrange``. Without that
            key, for given chunks only.
        clean_t: time at which clean chunks run.
        num_frames: pixel frames to make.
        video_size_h, video_size_w: pixels.
        num_steps, window_size: steps of a chunk, and chunks that are live at once.
        chunk_width: latent frames of a chunk.
        t5_pretrained, vae_pretrained, load: folders of the text encoder, the VAE and the transformer.
        t5_device: ``cpu``, or ``cuda``: the device of the run.
        scale_factor: of the VAE's latents, before the transformer sees them.
        temporal_downsample_factor: pixel frames of a latent one; 4 in all models.
    """

    cfg_number: int = 1
    cfg_t_range: tuple[float, ...] = _between(0, 1, (0.0, 0.0217, 0.1, 0.3, 0.999))
    prev_chunk_scales: tuple[float, ...] = _between(0, 1000, (1.5, 1.5, 1.5, 1.0, 1.0))
    text_scales: tuple[float, ...] = _between(0, 1000, (7.5, 7.5, 7.5, 0.0, 0.0))
    noise2clean_kvrange: tuple[int, ...] = _between(1, 10**6, ())
    clean_chunk_kvrange: int = _between(-1, 10**6, -1)
    clean_t: float = 1.0
    seed: int = _between(0, 2**63 - 1, 1234)
    num_frames: int = _between(1, 10**6, 96)
    video_size_h: int = _between(0, 2**14, 720)
    video_size_w: int = _between(0, 2**14, 720)
    num_steps: int = _between(1, 1000, 64)
    window_size: int = _between(1, 1000, 4)
    fps: float = 24
    chunk_width: int = _between(1, 1000, 6)
    t5_pretrained: str = ""
    t5_device: str = "cuda"
    vae_pretrained: str = ""
    scale_factor: float = _between(1e-6, 1e6, 0.18215)
    temporal_downsample_factor: int = FRAMES
    load: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", plain_rate(self.fps))
        super().__post_init__()
        check_pixels(self.num_frames, self.video_size_h, self.video_size_w)
        for name in ("load", "vae_pretrained", "t5_pretrained"):
            expand_path(getattr(self, name), name)
        self.require(0 < self.clean_t <= 1, "clean_t", "above 0 and at most 1")
        factor = "temporal_downsample_factor"
        self.require(getattr(self, factor) == FRAMES, factor, f"{FRAMES}, as the autoencoder has it")
        self.require(self.t5_device in ("cpu", "cuda"), "t5_device", "cpu or cuda")
        allowed = "at least 1, or -1 for the last of noise2clean_kvrange"
        self.require(self.clean_chunk_kvrange != 0, "clean_chunk_kvrange", allowed)

    @property
    def stride(self) -> int:
        """Steps between the starts of two chunks."""
        return self.num_steps // self.window_size


@dataclass(frozen=True, kw_only=True)
class EngineSection(Section):
    """The engine. One device runs everything so far: see ``UNUSED``.

    Attributes:
        fp8_quant: the checkpoint is quantised.
        distill_nearly_clean_chunk_threshold: time above which the oldest chunk also runs without context.
        shortcut_mode: the steps that a run of 12 steps makes; see ``Timetable``.
        distill: the checkpoint is distilled.
        kv_offload: keep keys and values of clean chunks in host memory.
    """

    distributed_backend: str = "nccl"
    distributed_timeout_minutes: int = 15
    pp_size: int = 1
    cp_size: int = 1
    cp_strategy: str = "none"
    ulysses_overlap_degree: int = 1
    fp8_quant: bool = False
    distill_nearly_clean_chunk_threshold: float = _between(-1000, 1000, 0.3)
    shortcut_mode: str = "8,16,16"
    distill: bool = False
    kv_offload: bool = False
    enable_cuda_graph: bool = False

    @property
    def unused(self) -> list[str]:
        """Keys with a value that is ignored."""
        return [
            key.name for key in fields(self) if key.name in UNUSED and getattr(self, key.name) != key.default
        ]


@dataclass(frozen=True, kw_only=True)
class MagiConfig:
    """A whole configuration file."""

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
        divisor = f"a divisor of num_steps ({runtime.num_steps})"
        runtime.require(runtime.num_steps % runtime.window_size == 0, "window_size", divisor)
        ranges = len(runtime.noise2clean_kvrange) or 1
        runtime.require(
            runtime.num_steps % ranges == 0,
            "noise2clean_kvrange",
            f"as long as a divisor of num_steps ({runtime.num_steps})",
        )

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Keys of all sections, with the names of their types."""
        return {key.name: key.type for section in fields(cls) for key in fields(section.default_factory)}

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> MagiConfig:
        """Read a JSON file; ``overrides`` replace keys of any section by their bare names.

        Raises:
            ValueError: the file is missing or no JSON, or a key or value is wrong; the key is named.
        """
        content, overrides = read_file(path, json.loads, "JSON"), dict(overrides or {})
        sections = {section.name: section.default_factory for section in fields(cls)}
        check_keys(content, sections, f"{path}")
        check_keys(overrides, cls.keys(), COMMAND_LINE)
        built = {}
        for name, kind in sections.items():
            where = f"{path}, {name}"
            own = {key: value for key, value in overrides.items() if key in kind.__dataclass_fields__}
            built[name] = build(kind, check_mapping(content.get(name, {}), where), where, own)
        return cls(**built)


@dataclass(frozen=True, kw_only=True)
class FlowCacheOptions(Section):
    """FlowCache's options for MAGI-1, as in the original's YAML files, and some of ours.

    Attributes:
        rel_l1_thresh: accumulated relative change at which a chunk is computed again; 0 never reuses. None:
            the preset's.
        interval: ours; instead of ``rel_l1_thresh``, steps from one computed step to the next.
        warmup_steps: first steps of a chunk, which are always computed; None: the preset's.
        discard_nearly_clean_chunk: leave out the extra forward pass of the oldest chunk without context.
        compress_kv_cache: keep the keys and values of clean chunks within a budget.
        total_cache_chunk_nums: chunks that the cache then holds.
        compress_strategy, query_granularity: ``token``, ``frame`` or ``chunk``.
        mix_lambda: weight of importance; the rest is that of redundancy.
        score_weighting_method, power: weighting of scores by position.
        kv_bits: ours; bits of the keys and values of clean chunks, 8 or 4; None: as the model makes them.
        log, print_peak_memory: ignored; accepted for compatibility.
    """

    rel_l1_thresh: float | None = _between(0, 1000)
    interval: int | None = _between(1, 1000)
    warmup_steps: int | None = _between(0, 1000)
    discard_nearly_clean_chunk: bool = False
    compress_kv_cache: bool = False
    total_cache_chunk_nums: int = _between(1, 10**6, 8)
    compress_strategy: str = "token"
    query_granularity: str = "frame"
    mix_lambda: float = _between(0, 1, 0.07)
    score_weighting_method: str = "no_weight"
    power: float = _between(0.001, 1000, 3.0)
    kv_bits: int | None = None
    log: bool = False
    print_peak_memory: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        only_knob({name: getattr(self, name) for name in RULES})
        for name in ("compress_strategy", "query_granularity"):
            self.require(getattr(self, name) in ("token", "frame", "chunk"), name, "token, frame or chunk")
        known = self.score_weighting_method in WEIGHTINGS
        self.require(known, "score_weighting_method", f"one of {', '.join(WEIGHTINGS)}")
        self.require(self.kv_bits in (None, *BITS), "kv_bits", "8 or 4")

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> FlowCacheOptions:
        """Read a YAML file; ``overrides`` replace its keys. Wrong keys and values are ValueErrors."""
        return build(cls, read_file(path, yaml.safe_load, "YAML"), str(path), overrides or {})
