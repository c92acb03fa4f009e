"""Finding and loading SkyReels-V2 models: official ones, local folders, and the small checkpoint."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowcache import FlowCacheConfig
from flowcache.finite import check_finite_weights
from flowcache.hub import fetch_snapshot
from flowcache.user_files import reading

from .methods import method_config
from .model_folder import (
    FAMILIES,
    PATTERNS,
    SMALL,
    check_folder,
    find_family,
    find_layout,
    load_folder,
    new_components,
)
from .pipeline import FlowCacheSkyReelsV2Pipeline
from .settings import DEFAULTS_FILE, VideoSettings, default_settings, make_settings

logger = logging.getLogger(__name__)

OFFICIAL_DEFAULT = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
OFFICIAL = tuple(f"Skywork/SkyReels-V2-DF-{name}" for name in ("1.3B-540P", "14B-540P", "14B-720P"))


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; decided before any weight is read.

    Attributes:
        model_id: as the user gave it; ``location`` resolves it.
        path: local folder; None for a Hub id.
        layout: ``diffusers`` or ``original``.
        family: ``1.3B``, ``14B`` or ``small``, which selects the fitted polynomials; None if unknown.
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
        """Folder or Hub id that is loaded."""
        return str(self.path or (OFFICIAL_DEFAULT if self.model_id == "auto" else self.model_id))

    @property
    def defaults(self) -> dict[str, Any]:
        return default_settings(self.location)

    def video_settings(self, **given: Any) -> VideoSettings:
        """Apply fields of ``VideoSettings`` to this model's defaults; None, and other names, are ignored."""
        known = given.keys() & VideoSettings.__dataclass_fields__.keys()
        return make_settings(self.defaults, **{name: given[name] for name in known})

    def method_config(self, method: str = "flowcache", preset: str = "fast", **changes: Any) -> FlowCacheConfig:
        """Call ``methods.method_config`` with the polynomial that was fitted for this model."""
        fitted = {"family": self.family, "coefficients": self.defaults.get("reuse_coefficients")}
        return method_config(method, preset, **{**fitted, **changes})


def resolve_model(model_id: str = "auto", device: torch.device | str | None = None) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    Args:
        model_id: ``auto`` (the official 1.3B on CUDA, else the small one), ``small``, a folder in diffusers'
            or the original layout, or the Hub id of an official diffusion-forcing model in either layout.
        device: where to run, which only ``auto`` reads; None: CUDA if available.

    Raises:
        ValueError: one sentence that names ``model_id`` and its choices, or what a folder lacks.
    """
    is_auto = model_id == "auto"
    if model_id == "small" or (is_auto and _choose_device(device).type != "cuda"):
        if not SMALL.is_dir():
            raise ValueError(
                f"model_id {model_id} needs the small checkpoint, but there is no folder {SMALL}; "
                "get the whole repository, or give a folder or a Hub id."
            )
        reason = f"no CUDA device: using it in place of {OFFICIAL_DEFAULT}" if is_auto else "asked for"
        reason = f"the small checkpoint shipped in assets/, which knows only moving shapes ({reason})"
        check_folder(SMALL, layout := find_layout(SMALL))
        return ModelSource(model_id, SMALL, layout, "small", reason, is_auto)
    if not is_auto and (folder := _find_folder(model_id)):
        transformer = check_folder(folder, layout := find_layout(folder))
        is_small = SMALL.is_dir() and folder.samefile(SMALL)
        family = "small" if is_small else find_family(transformer)
        source = ModelSource(model_id, folder, layout, family, f"{folder}, a folder in the {layout} layout")
        with reading(folder / DEFAULTS_FILE, "settings"):
            source.video_settings()
        return source
    repository = OFFICIAL_DEFAULT if is_auto else model_id
    name = repository.removesuffix("-Diffusers")
    if name not in OFFICIAL:
        raise ValueError(
            f"model_id must be auto, small, an existing folder, or one of {', '.join(OFFICIAL)} "
            f"(each also with -Diffusers), got {model_id!r}."
        )
    layout = "original" if name == repository else "diffusers"
    family = next(family for family in FAMILIES.values() if f"-{family}-" in name)
    reason = f"{repository}, official" + (" (auto on a CUDA device)" if is_auto else "")
    return ModelSource(model_id, None, layout, family, reason)


def load_components(source: ModelSource, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Read the components of a pipeline, as ``load_folder`` does; downloads them first for a Hub id.

    Raises:
        ValueError: a file or tensor is missing or corrupt; it is named.
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
    """Load a model (a result of ``resolve_model``, or its ``model_id``), in bf16 on CUDA and fp32 elsewhere.

    ``offload`` keeps every component in host memory while it is idle.

    Raises:
        ValueError, OSError: as ``resolve_model`` and ``load_components``.
        NotFiniteError: a weight holds NaN or infinity; it is named.
    """
    device = _choose_device(device)
    if isinstance(source, str):
        source = resolve_model(source, device)
    parts = load_components(source, _choose_type(device))
    pipeline = FlowCacheSkyReelsV2Pipeline(**parts)
    pipeline.model_defaults = source.defaults
    if offload:
        pipeline.enable_stage_offload(device)
    else:
        pipeline.to(device)
    check_finite_weights(pipeline.components)
    return pipeline


def new_pipeline(source: ModelSource, device: str) -> FlowCacheSkyReelsV2Pipeline:
    """Make the pipeline that ``load_pipeline`` loads, on the meta device."""
    dtype = _choose_type(torch.device(device))
    return FlowCacheSkyReelsV2Pipeline(**new_components(source.path, source.layout, source.family, dtype))


def _choose_type(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _choose_device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _find_folder(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if model_id and folder.is_dir() else None
    except (OSError, RuntimeError):  # longer than a path may be, or of a user who does not exist
        return None
