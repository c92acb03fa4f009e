"""The official configuration files: three sections of JSON, and FlowCache's options in YAML."""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .schedule import Timetable

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Keys of users' files that the original reads nowhere.
UNREAD = frozenset(
    {"budget_cache_chunk_nums", "budget_chunk_nums", "budget_cache_len", "reuse_strategy", "debug"}
)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The transformer, as ``MagiTransformer3DModel`` takes it, and what the files say besides."""

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


@dataclass(frozen=True, kw_only=True)
class RuntimeSection:
    """The video and its sampling.

    Attributes:
        cfg_number: forwards a step: 1 for distilled models, 3 for base models.
        cfg_t_range, prev_chunk_scales, text_scales: guidance scales by time.
        noise2clean_kvrange: chunks that a noisy chunk sees, by its progress; empty: all before it.
        clean_chunk_kvrange: chunks that a finished one sees; -1: as the last of those.
        clean_t: time at which finished chunks are shown.
        num_frames: pixel frames to make.
        video_size_h, video_size_w: pixels.
        num_steps, window_size: steps of a chunk, and chunks that are on their way at once.
        chunk_width: latent frames of a chunk.
        t5_pretrained, vae_pretrained, load: folders of the text encoder, the VAE and the transformer.
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
    fps: int = 24
    chunk_width: int = 6
    t5_pretrained: str = ""
    t5_device: str = "cuda"
    vae_pretrained: str = ""
    scale_factor: float = 0.18215
    temporal_downsample_factor: int = 4
    load: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """How it is run; what concerns several devices is read and checked, but not yet used."""

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
        if not len(runtime.cfg_t_range) == len(runtime.prev_chunk_scales) == len(runtime.text_scales):
            raise ValueError("cfg_t_range, prev_chunk_scales and text_scales must be of one length.")
        Timetable(runtime.num_steps, engine.shortcut_mode)
        for name in ("window_size", "chunk_width", "num_frames", "fps", "video_size_h", "video_size_w"):
            if getattr(runtime, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(runtime, name)}.")
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
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> MagiConfig:
        """Read a JSON file; ``overrides`` replace keys of any section by their bare names.

        Raises:
            ValueError: the file is missing or no JSON, or a key or value is wrong; the key is named.
        """
        content = _read(path, json.loads, "JSON")
        sections = {f.name: f.default_factory for f in fields(cls)}
        _check_keys(content, sections, f"{path}")
        for name, section in content.items():
            _check_keys(section, {*section} if isinstance(section, Mapping) else (), f"{path}, {name}")
        content = {name: dict(content.get(name, {})) for name in sections}
        for key, value in (overrides or {}).items():
            homes = [name for name, kind in sections.items() if key in kind.__dataclass_fields__]
            if not homes:
                known = [key for kind in sections.values() for key in kind.__dataclass_fields__]
                raise ValueError(_unknown(key, known, "the command line"))
            content[homes[0]][key] = value
        return cls(
            **{name: _build(kind, content[name], f"{path}, {name}") for name, kind in sections.items()}
        )


@dataclass(frozen=True, kw_only=True)
class FlowCacheOptions:
    """FlowCache's options for MAGI-1, as in the original's YAML files.

    Attributes:
        rel_l1_thresh: accumulated relative change at which a chunk is computed again; 0 never reuses.
        warmup_steps: steps of a chunk that are always computed.
        discard_nearly_clean_chunk: leave out the second, lonely run of chunks that are nearly clean.
        compress_kv_cache: keep the keys and values of finished chunks within a budget.
        total_cache_chunk_nums: chunks that the cache holds then.
        compress_strategy, query_granularity: ``token``, ``frame`` or ``chunk``.
        mix_lambda: weight of importance; the rest is that of redundancy.
        score_weighting_method, power: weighting of scores by place.
        log, print_peak_memory: of no effect: the trace always holds every decision, and the last line of a
            run always says how much memory was needed.
    """

    rel_l1_thresh: float = 0.01
    warmup_steps: int = 5
    discard_nearly_clean_chunk: bool = False
    compress_kv_cache: bool = False
    total_cache_chunk_nums: int = 8
    compress_strategy: str = "token"
    query_granularity: str = "frame"
    mix_lambda: float = 0.07
    score_weighting_method: str = "no_weight"
    power: float = 3.0
    log: bool = False
    print_peak_memory: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rel_l1_thresh) and self.rel_l1_thresh >= 0):
            raise ValueError(
                f"rel_l1_thresh must be a finite number of at least 0, got {self.rel_l1_thresh}."
            )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}.")
        for name in ("compress_strategy", "query_granularity"):
            if getattr(self, name) not in ("token", "frame", "chunk"):
                raise ValueError(f"{name} must be token, frame or chunk, got {getattr(self, name)!r}.")
        if not 0 <= self.mix_lambda <= 1:
            raise ValueError(f"mix_lambda must lie between 0 and 1, got {self.mix_lambda}.")

    @classmethod
    def from_file(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> FlowCacheOptions:
        """Read a YAML file.

        Raises:
            ValueError: the file is missing or no YAML, or a key or value is wrong; the key is named.
        """
        content = {**(_read(path, yaml.safe_load, "YAML") or {}), **(overrides or {})}
        return _build(cls, content, str(path))


def _read(path: str | Path, parse: Any, kind: str) -> Any:
    try:
        return parse(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid {kind}: {str(error).splitlines()[0]}.") from error


def _build(kind: type[T], content: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping; numbers become what the field is, lists tuples."""
    content = dict(content)
    for key in sorted(UNREAD & content.keys()):
        logger.warning("%s: %s has no effect: neither the original nor we read it.", where, key)
        del content[key]
    known = kind.__dataclass_fields__
    _check_keys(content, known, where)
    return kind(**{key: _cast(value, known[key].type, key, where) for key, value in content.items()})


def _cast(value: Any, kind: str, key: str, where: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "int" and number and float(value).is_integer():
        return int(value)
    if kind == "float" and number:
        return float(value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and (value is None or isinstance(value, str)):
        return value or ""
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        inner = kind.removeprefix("tuple[").split(",")[0]
        return tuple(_cast(item, inner, key, where) for item in value)
    raise ValueError(f"{where}: {key} must be {_READABLE.get(kind, 'a list of numbers')}, got {value!r}.")


_READABLE = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def _check_keys(content: Any, known: Collection[str], where: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must hold named values, got {type(content).__name__}.")
    for key in content:
        if key not in known:
            raise ValueError(_unknown(key, known, where))


def _unknown(key: str, known: Collection[str], where: str) -> str:
    close = difflib.get_close_matches(str(key), list(known), 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"{where}: there is no {key}{hint}"
