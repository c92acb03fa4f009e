"""Finding and loading SkyReels-V2 models: official ones, local folders, and the small checkpoint."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel

from flowcache import FlowCacheConfig
from flowcache.environment import choose_device
from flowcache.hub import fetch_snapshot
from flowcache.model_files import DEFAULTS_FILE, read_config
from flowcache.parallel import SINGLE, Group
from flowcache.user_files import reading
from flowcache.wan.loading import WanLoading, choose_dtype
from flowcache.wan.model_folder import (
    FAMILIES,
    check_folder,
    check_given,
    find_family,
    list_patterns,
    load_folder,
    new_components,
)
from flowcache.weight_files import ENDINGS

from .methods import method_config
from .pipeline import FlowCacheSkyReelsV2Pipeline
from .settings import SMALL, VideoSettings, default_settings, make_settings, read_defaults

logger = logging.getLogger(__name__)

OFFICIAL_DEFAULT = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
OFFICIAL = tuple(f"Skywork/SkyReels-V2-DF-{name}" for name in ("1.3B-540P", "14B-540P", "14B-720P"))


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; decided before any weight is read."""

    model_id: str  # as the user gave it; ``location`` resolves it
    path: Path | None  # local folder; None for a Hub id
    layout: str  # ``diffusers`` or ``original``
    family: str | None  # ``1.3B``, ``14B`` or ``small``, which selects the fitted polynomials; None if unknown
    reason: str  # one sentence that says which model and why
    is_substitute: bool = False  # whether the small checkpoint replaces the official weights for want of CUDA
    parts: Mapping[str, Path] = field(default_factory=dict)  # files or folders that replace the model's weights

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


def resolve_model(
    model_id: str = "auto",
    device: torch.device | str | None = None,
    parts: Mapping[str, str | Path] | None = None,
) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    Args:
        model_id: ``auto`` (the official 1.3B on CUDA, else the small one), ``small``, a folder in diffusers'
            or the original layout, or the Hub id of an official diffusion-forcing model in either layout.
        device: where to run, which only ``auto`` reads; None: CUDA if available.
        parts: files or folders of weights, by ``transformer``, ``vae`` or ``text_encoder``, in place of the model's;
            names of their tensors are those of either layout.
    """
    is_auto, parts = model_id == "auto", {name: Path(path).expanduser() for name, path in (parts or {}).items()}
    if model_id == "small" or (is_auto and choose_device(device).type != "cuda"):
        return _resolve_small(model_id, parts)
    if not is_auto and (folder := _find_folder(model_id)):
        layout, transformer = check_folder(folder, parts, check_kind)
        family = "small" if SMALL.is_dir() and folder.samefile(SMALL) else find_family(transformer)
        reason = f"{folder}, a folder in the {layout} layout"
        source = ModelSource(model_id, folder, layout, family, reason, parts=parts)
        with reading(folder / DEFAULTS_FILE, "settings"):
            source.video_settings()
        return source
    repository = OFFICIAL_DEFAULT if is_auto else model_id
    name = repository.removesuffix("-Diffusers")
    if name not in OFFICIAL:
        if model_id.endswith(ENDINGS):
            remedy = "set transformer to it, and model_id to its model, for text encoder and VAE"
            raise ValueError(f"model_id: expected a folder or a Hub id, got the file {model_id}; {remedy}.")
        known = f"auto, small, an existing folder, or one of {', '.join(OFFICIAL)} (each also with -Diffusers)"
        raise ValueError(f"model_id: expected {known}, got {model_id!r}.")
    layout = "original" if name == repository else "diffusers"
    family = next(family for family in FAMILIES.values() if f"-{family}-" in name)
    check_given(parts, family)
    reason = f"{repository}, official" + (" (auto on a CUDA device)" if is_auto else "")
    return ModelSource(model_id, None, layout, family, reason, parts=parts)


def check_kind(folder: Path, layout: str) -> None:
    """Refuse settings that are not those of a video, and models that were not trained for diffusion forcing.

    The weights of other models look the same.
    """
    read_defaults(folder)
    if layout == "original":
        return
    ours = SkyReelsV2Transformer3DModel.__name__
    pipeline = read_config(folder / "model_index.json", {"_class_name": ""}).get("_class_name")
    config = {"_class_name": ours} | read_config(folder / "transformer" / "config.json", {})
    others = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    if pipeline in others or config.get("image_dim") is not None or config["_class_name"] != ours:
        found = f"{folder}, a {pipeline} with a {config['_class_name']}"
        raise ValueError(f"model_id names {found}; only SkyReels-V2 diffusion-forcing (DF) models are supported.")


def load_components(
    source: ModelSource,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype = torch.float32,
    with_text: bool = True,
) -> dict[str, Any]:
    """Read the components of a pipeline, as ``load_folder`` does; downloads them first for a Hub id."""
    logger.log(logging.WARNING if source.is_substitute else logging.INFO, "model: %s", source.reason)
    patterns = list_patterns(source.layout, source.parts)
    check = partial(check_folder, given=source.parts, check=check_kind)
    folder = source.path or fetch_snapshot("model_id", source.location, patterns, check)
    return load_folder(folder, dtype, vae_dtype, source.parts, with_text)


def load_pipeline(
    source: ModelSource | str = "auto",
    device: torch.device | str | None = None,
    group: Group = SINGLE.world,
    **options: Any,
) -> FlowCacheSkyReelsV2Pipeline:
    """Load a model (a result of ``resolve_model``, or its ``model_id``), in bf16 on CUDA and fp32 elsewhere.

    ``options`` are fields of ``WanLoading``. Of a ``group`` of processes that make each video together, the first has
    the text encoder. ValueError and NotFiniteError name an option, a file or a weight; OSError: the download failed.
    """
    device, loading = choose_device(device), WanLoading(**options)
    if isinstance(source, str):
        source = resolve_model(source, device)
    types = choose_dtype(device), loading.choose_vae_dtype(device)
    parts = load_components(source, *types, group.is_first)
    pipeline = loading.build(FlowCacheSkyReelsV2Pipeline, parts, source.defaults)
    loading.place(pipeline, device, group)
    return pipeline


def new_pipeline(
    source: ModelSource, device: torch.device, loading: WanLoading = WanLoading()
) -> FlowCacheSkyReelsV2Pipeline:
    """Make the pipeline that ``load_pipeline`` loads, on the meta device."""
    types = choose_dtype(device), loading.choose_vae_dtype(device)
    parts = new_components(source.path, source.layout, source.family, *types)
    return loading.build(FlowCacheSkyReelsV2Pipeline, parts, source.defaults)


def _resolve_small(model_id: str, parts: Mapping[str, Path]) -> ModelSource:
    is_auto = model_id == "auto"
    if is_auto and parts:
        used = "the small checkpoint, which is used without a CUDA device, has its own"
        raise ValueError(f"{min(parts)}: {used}; set model_id to its model.")
    if not SMALL.is_dir():
        remedy = "get the whole repository, or give a folder or a Hub id"
        raise ValueError(f"model_id {model_id}: there is no folder {SMALL} with the small checkpoint; {remedy}.")
    reason = f"no CUDA device: using it in place of {OFFICIAL_DEFAULT}" if is_auto else "asked for"
    reason = f"the small checkpoint shipped in assets/, which knows only moving shapes ({reason})"
    layout, _ = check_folder(SMALL, parts, check_kind)
    return ModelSource(model_id, SMALL, layout, "small", reason, is_auto, parts)


def _find_folder(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if model_id and folder.is_dir() else None
    except (OSError, RuntimeError):  # longer than a path may be, or of a user who does not exist
        return None
