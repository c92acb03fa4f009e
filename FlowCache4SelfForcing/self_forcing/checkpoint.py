"""Finding and loading models: a base folder of Wan 2.1 with a published checkpoint, and the small one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowcache.environment import choose_device
from flowcache.hub import fetch_snapshot
from flowcache.model_files import read_config
from flowcache.parallel import SINGLE, Group
from flowcache.wan.loading import WanLoading, choose_dtype
from flowcache.wan.model_folder import check_folder, check_given, list_patterns, load_folder, new_components
from flowcache.weight_files import list_nested

from .pipeline import FlowCacheSelfForcingPipeline
from .published import DEFAULT, DEFAULT_IMAGE, WEIGHTS, Published, find_published
from .settings import SMALL, default_settings, make_settings, read_defaults

logger = logging.getLogger(__name__)

#: Base model: text encoder, VAE and sizes. The original program has it in this folder.
BASE, BASE_FOLDER, FAMILY = "Wan-AI/Wan2.1-T2V-1.3B", Path("wan_models/Wan2.1-T2V-1.3B"), "Wan-1.3B"
BASES = {BASE: "original", f"{BASE}-Diffusers": "diffusers"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; decided before any weight is read."""

    model_id: str  # as the user gave it; ``location`` resolves it
    path: Path | None  # local folder; None for a Hub id
    layout: str  # ``diffusers`` or ``original``
    reason: str  # one sentence that says which model and why
    is_substitute: bool = False  # whether the small checkpoint replaces the official weights for want of CUDA
    parts: Mapping[str, Path] = field(default_factory=dict)  # files that replace the model's weights
    published: Published | None = None  # what the transformer is, if known
    key: str = ""  # of its weights in a checkpoint of the originals
    config: Path | None = None  # settings; None: those of the published checkpoint or the folder

    @property
    def is_small(self) -> bool:
        """Whether the weights are the small checkpoint of this repository."""
        return self.path == SMALL and not self.parts

    @property
    def location(self) -> str:
        """Folder or Hub id of the base model."""
        return str(self.path or (BASE if self.model_id == "auto" else self.model_id))

    @property
    def downloads(self) -> bool:
        """Whether the transformer is on the Hub."""
        return self.published is not None and "transformer" not in self.parts

    @property
    def defaults(self) -> dict[str, Any]:
        config = self.config or (self.published and self.published.config)
        return default_settings(self.location, config)


def resolve_model(
    model_id: str = "auto",
    device: torch.device | str | None = None,
    parts: Mapping[str, str | Path] | None = None,
    use_ema: bool | None = None,
    config: Path | None = None,
    starts_with_image: bool = False,
) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    Args:
        model_id: ``auto``, ``small``, a folder of Wan 2.1 T2V 1.3B in the original or diffusers' layout, or a Hub id.
            ``auto`` is the folder of the original program if it exists, else the Hub's; without a transformer, on
            CUDA with the default checkpoint, otherwise the small one.
        device: where to run, which only ``auto`` reads; None: CUDA if available.
        parts: files of weights by ``transformer`` (a checkpoint, also one on the Hub by its repository and file),
            ``vae`` or ``text_encoder``, in place of the model's.
        use_ema: take the moving average of a checkpoint's weights; None: what the published one is for, else not.
        config: configuration of the originals; None: that of the published checkpoint.
        starts_with_image: choose a default checkpoint that was trained for it, too.
    """
    given = {name: Path(path).expanduser() for name, path in (parts or {}).items()}
    published, is_auto = None, model_id == "auto"
    if (transformer := given.get("transformer")) is not None:
        published = find_published(transformer)
        if published is not None and not transformer.exists():
            del given["transformer"]
    elif is_auto and choose_device(device).type == "cuda":
        published = DEFAULT_IMAGE if starts_with_image else DEFAULT
    has_transformer = published is not None or "transformer" in given
    if use_ema is not None and not has_transformer:
        raise ValueError("use_ema: expected transformer beside it, which may hold a moving average, got none.")
    if model_id == "small" or (is_auto and not has_transformer):
        return _resolve_small(is_auto, given, config)
    key = _choose_key(given.get("transformer"), published, use_ema)
    folder = _find_base(model_id)
    common = {"parts": given, "published": published, "key": key, "config": config}
    name = published.name if published else str(given.get("transformer", "its own transformer"))
    terms = f" (licence: {published.license})" if published else ""
    if folder is None:
        if not has_transformer:
            raise ValueError(f"transformer: expected a checkpoint, as {model_id} is not autoregressive, got none.")
        check_given(given, FAMILY, key)
        repository = BASE if is_auto else model_id
        return ModelSource(model_id, None, BASES[repository], f"{name}{terms} on {repository}", **common)
    # Its own weights stand for those to be downloaded.
    layout, _ = check_folder(folder, given, check_kind, key if "transformer" in given else "")
    if layout == "original" and not has_transformer:
        raise ValueError(f"transformer: expected a checkpoint, as {folder} is not autoregressive, got none.")
    source = ModelSource(model_id, folder, layout, f"{name}{terms} on {folder}", **common)
    make_settings(source.defaults)
    return source


def check_kind(folder: Path, layout: str) -> None:
    """Refuse settings that are not those of a video, and models that take an image's tokens."""
    read_defaults(folder)
    if layout == "diffusers":
        config = read_config(folder / "transformer" / "config.json", {})
        if config.get("image_dim") is not None or config.get("inject_sample_info"):
            raise ValueError(f"model_id names {folder}, whose transformer is not that of Wan 2.1 T2V.")


def load_pipeline(
    source: ModelSource | str = "auto",
    device: torch.device | str | None = None,
    group: Group = SINGLE.world,
    **options: Any,
) -> FlowCacheSelfForcingPipeline:
    """Load a model (a result of ``resolve_model``, or its ``model_id``), in bf16 on CUDA and fp32 elsewhere.

    ``options`` are fields of ``WanLoading``. Of a ``group`` of processes that make each video together, the first has
    the text encoder. ValueError and NotFiniteError name an option, a file or a weight; OSError: the download failed.
    """
    device, loading = choose_device(device), WanLoading(**options)
    if isinstance(source, str):
        source = resolve_model(source, device)
    logger.log(logging.WARNING if source.is_substitute else logging.INFO, "model: %s", source.reason)
    if source.downloads:
        published = source.published
        root = fetch_snapshot("transformer", published.repository, [published.file], published.check_folder)
        source = replace(source, parts={**source.parts, "transformer": root / published.file})
    check = partial(check_folder, given=source.parts, check=check_kind, key=source.key)
    folder = source.path or fetch_snapshot(
        "model_id", source.location, list_patterns(source.layout, source.parts), check
    )
    types = choose_dtype(device), loading.choose_vae_dtype(device)
    parts = load_folder(folder, *types, source.parts, group.is_first, source.key)
    pipeline = loading.build(FlowCacheSelfForcingPipeline, parts, source.defaults)
    loading.place(pipeline, device, group)
    return pipeline


def new_pipeline(
    source: ModelSource, device: torch.device, loading: WanLoading = WanLoading()
) -> FlowCacheSelfForcingPipeline:
    """Make the pipeline that ``load_pipeline`` loads, on the meta device."""
    types = choose_dtype(device), loading.choose_vae_dtype(device)
    parts = new_components(source.path, source.layout, FAMILY, *types)
    return loading.build(FlowCacheSelfForcingPipeline, parts, source.defaults)


def _resolve_small(is_auto: bool, given: Mapping[str, Path], config: Path | None) -> ModelSource:
    if is_auto and given:
        used = "the small checkpoint, which is used without a CUDA device, has its own"
        raise ValueError(f"{min(given)}: {used}; set model_id to its model.")
    if not SMALL.is_dir():
        remedy = "get the whole repository, or give a checkpoint"
        raise ValueError(f"model_id: there is no folder {SMALL} with the small checkpoint; {remedy}.")
    reason = f"no CUDA device: using it in place of {DEFAULT.name}" if is_auto else "asked for"
    reason = f"the small checkpoint shipped in assets/, which knows only moving shapes ({reason})"
    layout, _ = check_folder(SMALL, given, check_kind)
    model_id = "auto" if is_auto else "small"
    return ModelSource(model_id, SMALL, layout, reason, is_auto, given, config=config)


def _find_base(model_id: str) -> Path | None:
    """Local folder of the base model; None for one on the Hub."""
    if model_id == "auto":
        return BASE_FOLDER if BASE_FOLDER.is_dir() else None
    if (folder := Path(model_id).expanduser()).is_dir():
        return folder
    if model_id not in BASES:
        known = f"auto, small, an existing folder, or one of {', '.join(BASES)}"
        raise ValueError(f"model_id: expected {known}, got {model_id!r}.")
    return None


def _choose_key(file: Path | None, published: Published | None, use_ema: bool | None) -> str:
    """Key of the transformer's weights in its checkpoint; "" in a file of weights alone.

    ``file``: None for one on the Hub.
    """
    if use_ema is not None and published is not None and published.use_ema != use_ema:
        better = "with" if published.use_ema else "without"
        logger.warning("use_ema: %s is meant to be run %s it", published.name, better)
    held = [] if file is None else list_nested(file)
    if use_ema is None:
        key = WEIGHTS[published.use_ema] if published else ""
        return key if file is None or key in held else next((k for k in WEIGHTS.values() if k in held), "")
    key = WEIGHTS[use_ema]
    if file is not None and key not in held and (use_ema or held):
        raise ValueError(f"use_ema: expected {key} in {file}, got {', '.join(held) or 'weights alone'}.")
    return key if file is None or key in held else ""
