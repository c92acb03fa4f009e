"""The model of a run: the official weights that its configuration names, or the small checkpoint.

Official weights are in local folders or on the Hub; they are downloaded when they are loaded.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowcache.environment import choose_device
from flowcache.files import shipped
from flowcache.finite import check_finite_weights
from flowcache.hub import fetch_snapshot
from flowcache.loading import LoadOptions

from . import checkpoint
from .checkpoint import FOLDERS, T5_FOLDER
from .config import FRAMES, MagiConfig
from .conversion import lora_names
from .quantised import multiplies_fp8

logger = logging.getLogger(__name__)

SMALL = shipped("assets/magi1_small")

#: A folder on the Hub: ``owner/repository/folder``.
_HUB_FOLDER = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([^/].*?)/*")

#: Keys of a user's configuration that hold for the small checkpoint, too.
_KEPT = ("num_steps", "window_size", "seed", "noise", "noise2clean_kvrange", "clean_chunk_kvrange")
_KEPT_ENGINE = ("shortcut_mode", "distributed_backend", "distributed_timeout_minutes", "cp_size")


@dataclass(frozen=True)
class ModelSource:
    """A configuration whose folders exist, or are named on the Hub; no weight is read yet."""

    config: MagiConfig
    reason: str  # which model and why, for the log
    is_substitute: bool = False  # whether the small checkpoint replaces the official weights for want of CUDA

    @property
    def folders(self) -> dict[str, Path]:
        """Local folders of weights by the key that names them; without those on the Hub."""
        named = {name: getattr(self.config.runtime_config, name) for name in FOLDERS}
        local = {k: Path(value).expanduser() for k, value in named.items() if not parse_hub_folder(value)}
        if "load" in local:
            local["load"] = checkpoint.weight_folder(local["load"], self.config.engine_config)
        return local


def resolve_model(
    config_file: str | Path,
    overrides: Mapping[str, Any] | None = None,
    model: str = "auto",
    device: torch.device | str | None = None,
) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    The folders of a configuration may be on the Hub: ``sand-ai/MAGI-1/ckpt/magi/4.5B_distill``. If ``load``
    is, the others default to the same repository unless they exist here or are in ``overrides``.

    Args:
        config_file, overrides: a configuration in three sections, and keys that replace those of the file.
        model: ``official``: the folders that the configuration names; ``small``: the small checkpoint, with
            the steps, window, seed and ranges of the configuration; ``auto``: the official one on CUDA or if
            ``overrides`` have ``load``, else the small one.
        device: of the run, for ``auto``; None: CUDA if there is any.
    """
    config, overrides = MagiConfig.from_file(config_file, overrides), dict(overrides or {})
    if model not in ("auto", "official", "small"):
        raise ValueError(f"model: expected auto, official or small, got {model!r}.")
    if model == "official":
        why = "asked for official"
    elif model == "auto" and overrides.get("load"):
        why = "load was given"
    elif model == "auto" and choose_device(device).type == "cuda":
        why = "CUDA device"
    else:
        return _resolve_small(config, overrides, model)
    load, runtime = config.runtime_config.load, config.runtime_config
    if hub := parse_hub_folder(load):
        absent = {
            name: f"{hub[0]}/{folder}"
            for name, folder in checkpoint.BESIDE.items()
            if name not in overrides and not ((named := getattr(runtime, name)) and Path(named).expanduser().is_dir())
        }
        config = replace(config, runtime_config=replace(runtime, **absent))
    for name, check in FOLDERS.items():
        folder = getattr(config.runtime_config, name)
        if not folder:
            official = checkpoint.BESIDE.get(name, checkpoint.SMALLEST)
            raise ValueError(f"{name} must name a folder, here or on the Hub ({checkpoint.REPOSITORY}/{official}).")
        if not parse_hub_folder(folder):
            check(Path(folder).expanduser(), config)
    return ModelSource(config, f"{why}: using the official weights in {load}")


def load_components(
    source: ModelSource,
    device: torch.device | str | None = None,
    on_host: Collection[str] = (),
    options: LoadOptions = LoadOptions(),
    with_text: bool = True,
) -> dict[str, Any]:
    """Load text encoder, transformer and VAE: in the configuration's types on CUDA, in fp32 elsewhere.

    The text encoder is always in fp32, and None without ``with_text``; components ``on_host`` are not moved to the
    device. ValueError and NotFiniteError name a tensor; OSError: a download failed.
    """
    device, config = choose_device(device), source.config
    logger.log(logging.WARNING if source.is_substitute else logging.INFO, "model: %s", source.reason)
    folders = {name: _fetch_folder(name, config) for name in FOLDERS}
    runtime = config.runtime_config
    if runtime.clean_chunk_kvrange != -1 and not runtime.noise2clean_kvrange:
        found = f"clean_chunk_kvrange {runtime.clean_chunk_kvrange}, but noise2clean_kvrange is empty"
        logger.warning("%s: a chunk sees all chunks before it, unless it is given.", found)
    dtype = None if device.type == "cuda" else torch.float32
    transformer = checkpoint.load_transformer(folders["load"], config, dtype, keep_fp8=multiplies_fp8(device))
    vae = checkpoint.load_vae(folders["vae_pretrained"], options.choose_vae_dtype(device))
    vae.register_to_config(scaling_factor=runtime.scale_factor)
    tokenizer, encoder = checkpoint.load_text_encoder(folders["t5_pretrained"], with_text)
    parts = {"text_encoder": encoder, "transformer": transformer, "vae": vae}
    options.adapt(parts, lora_names)
    for name, part in parts.items():
        if part is not None and name not in on_host:
            part.to(device)
    check_finite_weights(parts)
    return {**parts, "tokenizer": tokenizer, "tile_frames": _choose_tile(config)}


def new_components(source: ModelSource, device: torch.device, options: LoadOptions = LoadOptions()) -> dict[str, Any]:
    """Make what ``load_components`` loads for a kind of device, on the meta device and without tokenizer."""
    config, folders, on_cuda = source.config, source.folders, device.type == "cuda"
    # Without a GPU, of one that multiplies in fp8.
    keep_fp8 = multiplies_fp8(device) if torch.cuda.is_available() else on_cuda
    transformer = checkpoint.new_transformer(config.model_config, keep_fp8 and config.engine_config.fp8_quant)
    # Diffusers' method would warn of what stays in fp32.
    nn.Module.to(transformer, config.model_config.dtype if on_cuda else torch.float32)
    encoder = checkpoint.new_text_encoder(folders.get("t5_pretrained"))
    vae = nn.Module.to(checkpoint.new_vae(folders.get("vae_pretrained")), options.choose_vae_dtype(device))
    parts = {"tokenizer": None, "text_encoder": encoder, "transformer": transformer, "vae": vae}
    options.adapt(parts)
    return {**parts, "tile_frames": _choose_tile(config)}


def _choose_tile(config: MagiConfig) -> int:
    """Frames that the VAE takes at once: half a second."""
    return max(round(config.runtime_config.fps) // 2, FRAMES)


def _resolve_small(config: MagiConfig, overrides: dict[str, Any], model: str) -> ModelSource:
    if unread := next((name for name in FOLDERS if overrides.get(name)), None):
        remedy = f"leave {unread} out, or set model to official"
        raise ValueError(f"{unread}: the small checkpoint, which is used here, has its own; {remedy}.")
    if not SMALL.is_dir():
        remedy = "get the whole repository, or set model to official and load to a folder of official weights"
        raise ValueError(f"model {model}: there is no folder {SMALL} with the small checkpoint; {remedy}.")
    runtime = config.runtime_config
    kept = {name: getattr(runtime, name) for name in _KEPT}
    kept |= {name: getattr(config.engine_config, name) for name in _KEPT_ENGINE}
    folders = {"load": SMALL, "vae_pretrained": SMALL / "vae", "t5_pretrained": SMALL / "t5"}
    overrides = {**kept, **overrides, **{name: str(path) for name, path in folders.items()}}
    small = MagiConfig.from_file(SMALL / "config.json", overrides)
    reason = "using the small checkpoint in assets/"
    if model == "small":
        return ModelSource(small, f"asked for small: {reason}")
    size = f"{small.runtime_config.video_size_w} x {small.runtime_config.video_size_h} pixels"
    reason = f"no CUDA device: {reason}, {size}; the configuration's model and video sizes are not used"
    return ModelSource(small, reason, is_substitute=True)


def parse_hub_folder(name: str) -> tuple[str, str] | None:
    """Read ``owner/repository/folder``: the repository and the folder in it; None for local paths.

    A path is local if it begins with a dot, a slash or ``~``, or if its first part exists here.
    """
    match = _HUB_FOLDER.fullmatch(name)
    if match is None or ".." in Path(name).parts or Path(Path(name).parts[0]).exists():
        return None
    return match[1], match[2]


def _fetch_folder(key: str, config: MagiConfig) -> Path:
    """The local folder that a key names; one on the Hub is downloaded unless the cache has all of it."""
    named = getattr(config.runtime_config, key)
    if (hub := parse_hub_folder(named)) is None:
        return Path(named).expanduser()
    repository, folder = hub
    inside = {"load": checkpoint.weight_folder_name(config.engine_config), "t5_pretrained": T5_FOLDER}.get(key)
    wanted = f"{folder}/{inside}" if inside else folder

    def check(root: Path) -> None:
        if not (root / wanted).is_dir():
            raise ValueError(f"{key}: expected a repository with a folder {wanted}, got {repository}.")
        FOLDERS[key](root / folder, config)

    return fetch_snapshot(key, repository, [f"{wanted}/*"], check) / folder
