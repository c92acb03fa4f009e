"""Finds and loads SkyReels-V2 checkpoints: in diffusers' layout, in the original one, and the small one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowcache import FlowCacheConfig
from flowcache.finite import check_finite_weights
from flowcache.hub import fetch_snapshot
from flowcache.shipped import shipped
from flowcache.user_files import reading

from .methods import method_config
from .model_folder import (
    PATTERNS,
    Components,
    check_folder,
    find_layout,
    load_folder,
    read_defaults,
)
from .pipeline import FlowCacheSkyReelsV2Pipeline
from .settings import DEFAULTS_FILE, OFFICIAL_DEFAULTS, RESOLUTIONS, VideoSettings

logger = logging.getLogger(__name__)

OFFICIAL_DEFAULT = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
OFFICIAL = tuple(f"Skywork/SkyReels-V2-DF-{name}" for name in ("1.3B-540P", "14B-540P", "14B-720P"))
SMALL = shipped("assets/skyreels_v2_small")

_SMALL_NAME = "the small checkpoint shipped in assets/, which knows nothing but moving shapes"

#: Width and number of layers of the official models.
FAMILIES = {(1536, 30): "1.3B", (5120, 40): "14B"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; decided before any weight is read.

    Attributes:
        model_id: as the user gave it; ``location`` says what it stands for.
        path: local folder; None for a Hub id.
        layout: ``diffusers`` or ``original``.
        family: ``1.3B``, ``14B`` or ``small``, which tells the fitted polynomials; None if unknown.
        reason: one sentence that says which model and why.
        is_substitute: whether the small checkpoint replaces the official weights for want of CUDA.
    """

    model_id: str
    path: Path | None
    layout: str
    family: str | None
    reason: str
    is_substitute: bool = False

    @property
    def location(self) -> str:
        """The folder or the Hub id that is loaded, which ``model_id`` may leave open."""
        return str(self.path or (OFFICIAL_DEFAULT if self.model_id == "auto" else self.model_id))

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings that suit this model: those of ``defaults.json`` in its folder over the official ones."""
        size = RESOLUTIONS["720P" if "720P" in self.location else "540P"]
        own = read_defaults(self.path) if self.path else {}
        return {**OFFICIAL_DEFAULTS, "height": size[0], "width": size[1], **own}

    def video_settings(self, **given: Any) -> VideoSettings:
        """What suits this model, with the given fields over it; None leaves a field as it suits.

        Raises:
            ValueError: a setting is out of range; one sentence that names it.
        """
        wanted = {**self.defaults, **{name: value for name, value in given.items() if value is not None}}
        fields = {name: value for name, value in wanted.items() if name in VideoSettings.__dataclass_fields__}
        return VideoSettings(**fields)

    def method_config(
        self, method: str = "flowcache", preset: str = "fast", **changes: Any
    ) -> FlowCacheConfig:
        """``methods.method_config`` with the polynomial that was fitted for this model."""
        fitted = {"family": self.family, "coefficients": self.defaults.get("reuse_coefficients")}
        return method_config(method, preset, **{**fitted, **changes})


def resolve_model(model_id: str = "auto", device: torch.device | str | None = None) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    Args:
        model_id: ``auto`` (the official 1.3B on CUDA, else the small one), ``small``, a folder in diffusers'
            or the original layout, or the Hub id of an official diffusion-forcing model in either layout.
        device: where it is to run; only ``auto`` looks at it. None takes CUDA if it is there.

    Raises:
        ValueError: one sentence that names ``model_id`` and what it may be, or what a folder lacks.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if model_id == "auto" and torch.device(device).type == "cuda":
        return _hub_source(model_id, OFFICIAL_DEFAULT, f"CUDA device: using the official {OFFICIAL_DEFAULT}")
    if model_id == "auto":
        return _small_source(model_id, f"no CUDA device: using {_SMALL_NAME}, not {OFFICIAL_DEFAULT}")
    if model_id == "small":
        return _small_source(model_id, f"asked for small: using {_SMALL_NAME}")
    folder = _existing_folder(model_id)
    if folder is not None:
        return _folder_source(model_id, folder)
    if model_id.removesuffix("-Diffusers") in OFFICIAL:
        return _hub_source(model_id, model_id, f"Hub id: using the official {model_id}")
    raise ValueError(
        f"model_id must be auto, small, an existing folder, or one of {', '.join(OFFICIAL)} "
        f"(each also with -Diffusers), got {model_id!r}."
    )


def load_components(source: ModelSource, dtype: torch.dtype = torch.float32) -> Components:
    """Read a model's weights, all of them strictly; downloads them first for a Hub id.

    Args:
        source: what ``resolve_model`` returned.
        dtype: of text encoder and transformer, bf16 on CUDA; the VAE and what diffusers keeps in fp32 are
            always in fp32.

    Raises:
        ValueError: a file is missing or corrupt, or a tensor is unknown, missing or misshapen; it is named.
        OSError: the download failed.
    """
    logger.log(logging.WARNING if source.is_substitute else logging.INFO, "model: %s", source.reason)
    folder = source.path or fetch_snapshot(
        "model_id", source.location, PATTERNS[source.layout], partial(check_folder, layout=source.layout)
    )
    return load_folder(folder, source.layout, dtype)


def load_pipeline(
    source: ModelSource | str = "auto", device: torch.device | str | None = None, offload: bool = False
) -> FlowCacheSkyReelsV2Pipeline:
    """Load a model as a pipeline: bf16 on CUDA, fp32 elsewhere; see ``load_components``.

    Args:
        source: what ``resolve_model`` returned, or what it takes.
        device: where to run; None takes CUDA if it is there.
        offload: keep every component in host memory while it does not work.

    Raises:
        ValueError: see ``resolve_model`` and ``load_components``.
        NotFiniteError: a weight holds NaN or infinity; it is named.
        OSError: the download failed.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(source, str):
        source = resolve_model(source, device)
    parts = load_components(source, torch.bfloat16 if device.type == "cuda" else torch.float32)
    pipeline = FlowCacheSkyReelsV2Pipeline(**vars(parts))
    pipeline.model_defaults = source.defaults
    pipeline.default_negative_prompt = source.defaults["negative_prompt"]
    if offload:
        pipeline.enable_stage_offload(device)
    else:
        pipeline.to(device)
    check_finite_weights(pipeline.components)
    return pipeline


def _hub_source(model_id: str, repository: str, reason: str) -> ModelSource:
    layout = "diffusers" if repository.endswith("-Diffusers") else "original"
    family = next(family for family in FAMILIES.values() if f"-{family}-" in repository)
    return ModelSource(model_id, None, layout, family, reason)


def _small_source(model_id: str, reason: str) -> ModelSource:
    if not SMALL.is_dir():
        raise ValueError(
            f"model_id {model_id} needs the small checkpoint, but there is no folder {SMALL}; "
            "get the whole repository, or give a folder or a Hub id."
        )
    layout = find_layout(SMALL)
    check_folder(SMALL, layout)
    return ModelSource(model_id, SMALL, layout, "small", reason, is_substitute=model_id == "auto")


def find_family(transformer: Any) -> str | None:
    """Return the family of a transformer's configuration; None if it is no official one."""
    width = transformer.num_attention_heads * transformer.attention_head_dim
    return FAMILIES.get((width, transformer.num_layers))


def _existing_folder(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if model_id and folder.is_dir() else None
    except (OSError, RuntimeError):  # longer than a path may be, or of a user who does not exist
        return None


def _folder_source(model_id: str, folder: Path) -> ModelSource:
    layout = find_layout(folder)
    transformer = check_folder(folder, layout)
    small = SMALL.is_dir() and folder.samefile(SMALL)
    family = "small" if small else find_family(transformer)
    reason = f"local folder: using {folder} in the {layout} layout"
    source = ModelSource(model_id, folder, layout, family, reason)
    if (folder / DEFAULTS_FILE).is_file():
        with reading(folder / DEFAULTS_FILE, "settings"):
            source.video_settings()
    return source
