"""Which model a run takes: the official weights that its configuration names, or the small checkpoint.

Official weights lie in local folders or on the Hub, from where they are downloaded when they are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowcache.finite import check_finite_weights

from .checkpoint import (
    BESIDE,
    check_transformer,
    check_vae,
    load_transformer,
    load_vae,
    vae_settings,
    weight_folder,
    weight_folder_name,
)
from .config import FRAMES, PIXELS, MagiConfig
from .hub import HubFolder
from .pipeline import MagiPipeline
from .quantised import multiplies_fp8
from .text_encoder import T5_FOLDER, check_text_encoder, load_text_encoder

logger = logging.getLogger(__name__)

SMALL = Path(__file__).resolve().parents[2] / "assets" / "magi1_small"

#: Keys of the configuration that name folders of weights.
FOLDERS = ("load", *BESIDE)

#: What a user's configuration says of the sampling and not of the model; it holds for the small one, too.
_KEPT = ("num_steps", "window_size", "seed", "noise2clean_kvrange", "clean_chunk_kvrange")


@dataclass(frozen=True)
class ModelSource:
    """A configuration whose folders are there, or are named on the Hub; decided before any weight is read.

    Attributes:
        config: what to load and to run.
        reason: one sentence that says which model and why.
        is_substitute: whether the small checkpoint replaces the official weights for want of CUDA.
    """

    config: MagiConfig
    reason: str
    is_substitute: bool = False

    @property
    def folders(self) -> dict[str, Path]:
        """Local folders that weights are read from, by the key that names them; without those on the Hub."""
        runtime = self.config.runtime_config
        local = {
            name: Path(getattr(runtime, name)).expanduser()
            for name in FOLDERS
            if not HubFolder.parse(getattr(runtime, name))
        }
        if "load" in local:
            local["load"] = weight_folder(local["load"], self.config.engine_config)
        return local


def resolve_model(
    config_file: str | Path,
    overrides: Mapping[str, Any] | None = None,
    model: str = "auto",
    device: torch.device | str | None = None,
) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    The folders that the configuration names, ``load``, ``vae_pretrained`` and ``t5_pretrained``, may lie on
    the Hub: ``sand-ai/MAGI-1/ckpt/magi/4.5B_distill``. If ``load`` does, the others are looked for in the
    same repository unless they are here or were given in ``overrides``.

    Args:
        config_file: a configuration in three sections.
        overrides: keys of any section that replace those of the file.
        model: ``official`` takes the folders that the configuration names; ``small`` the small checkpoint,
            with the steps, window, seed and ranges of the configuration; ``auto`` the official one on CUDA or
            if ``overrides`` say where it lies, else the small one.
        device: where it is to run; only ``auto`` looks at it. None takes CUDA if it is there.

    Raises:
        ValueError: one sentence that names what is wrong in the configuration, or the folder that is missing.
    """
    config = MagiConfig.from_file(config_file, overrides)
    if model not in ("auto", "official", "small"):
        raise ValueError(f"model must be auto, official or small, got {model!r}.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    load, why = config.runtime_config.load, _why_official(overrides or {}, model, device)
    if why is not None:
        config = _with_neighbours(config, overrides or {})
        _check_folders(config)
        return ModelSource(config, f"{why}: using the official weights in {load}")
    unread = next((name for name in FOLDERS if (overrides or {}).get(name)), None)
    if unread is not None:
        raise ValueError(
            f"{unread}: the small checkpoint, which is taken here, has its own; leave {unread} out, or set "
            "model to official."
        )
    if not SMALL.is_dir():
        raise ValueError(
            f"model {model} takes the small checkpoint here, but there is no folder {SMALL}; get the whole "
            "repository, or set model to official and load to a folder of official weights."
        )
    kept = {name: getattr(config.runtime_config, name) for name in _KEPT}
    kept["shortcut_mode"] = config.engine_config.shortcut_mode
    small = MagiConfig.from_file(SMALL / "config.json", {**kept, **(overrides or {})})
    folders = {"load": SMALL, "vae_pretrained": SMALL / "vae", "t5_pretrained": SMALL / "t5"}
    runtime = replace(small.runtime_config, **{name: str(path) for name, path in folders.items()})
    small = replace(small, runtime_config=runtime)
    reason = "using the small checkpoint in assets/"
    if model == "small":
        return ModelSource(small, f"asked for small: {reason}")
    size = f"{runtime.video_size_w} x {runtime.video_size_h} pixels"
    reason = f"no CUDA device: {reason}, {size}; the configuration's model and video sizes are not used"
    return ModelSource(small, reason, is_substitute=True)


def load_pipeline(source: ModelSource, device: torch.device | str | None = None) -> MagiPipeline:
    """Read text encoder, transformer and VAE: in the configuration's types on CUDA, in fp32 elsewhere.

    The text encoder, in fp32 always, stays on the CPU if ``t5_device`` says so.

    Args:
        source: what ``resolve_model`` returned.
        device: where to run; None takes CUDA if it is there.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen or corrupt; it is named.
        NotFiniteError: a tensor holds NaN or infinity; it is named.
        OSError: a download failed.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    logger.log(logging.WARNING if source.is_substitute else logging.INFO, "model: %s", source.reason)
    config = _fetched(source.config)
    runtime, engine = config.runtime_config, config.engine_config
    for name in engine.unused:
        logger.warning("%s has no effect yet: one device runs everything.", name)
    if runtime.clean_chunk_kvrange != -1 and not runtime.noise2clean_kvrange:
        logger.warning(
            "clean_chunk_kvrange %d is ignored but for given chunks, because noise2clean_kvrange is empty: a "
            "chunk sees all chunks before it.",
            runtime.clean_chunk_kvrange,
        )
    dtype = None if device.type == "cuda" else torch.float32
    transformer = load_transformer(config, dtype, keep_fp8=multiplies_fp8(device))
    vae = load_vae(runtime.vae_pretrained)
    vae.register_to_config(scaling_factor=runtime.scale_factor)
    tokenizer, encoder = load_text_encoder(runtime.t5_pretrained)
    for part in (transformer, vae):
        part.to(device)
    if runtime.t5_device != "cpu":
        encoder.to(device)
    tile_frames = max(round(runtime.fps) // 2, vae.config.patch_length)
    pipeline = MagiPipeline(tokenizer, encoder, transformer, vae, tile_frames)
    check_finite_weights(pipeline.components)
    return pipeline


def _why_official(overrides: Mapping[str, Any], model: str, device: torch.device) -> str | None:
    """Why the official weights are taken; None: they are not."""
    if model == "official":
        return "asked for official"
    if model == "auto" and overrides.get("load"):
        return "load was given"
    if model == "auto" and device.type == "cuda":
        return "CUDA device"
    return None


def _with_neighbours(config: MagiConfig, overrides: Mapping[str, Any]) -> MagiConfig:
    """With the repository of ``load`` for parts that are neither here nor asked for from elsewhere."""
    hub = HubFolder.parse(config.runtime_config.load)
    if hub is None:
        return config
    absent = {
        name: str(HubFolder(hub.repository, folder))
        for name, folder in BESIDE.items()
        if name not in overrides and not _is_folder(getattr(config.runtime_config, name))
    }
    return replace(config, runtime_config=replace(config.runtime_config, **absent))


def _is_folder(name: str) -> bool:
    """Whether a folder of that name is here; an empty name is none, and not the current one."""
    return bool(name) and Path(name).expanduser().is_dir()


def _fetched(config: MagiConfig) -> MagiConfig:
    """With local folders in the place of those on the Hub."""
    needed = {"load": weight_folder_name(config.engine_config), "vae_pretrained": ""}
    needed["t5_pretrained"] = T5_FOLDER
    for name, inside in needed.items():
        hub = HubFolder.parse(getattr(config.runtime_config, name))
        if hub is not None:
            folder = hub.fetch(name, inside, partial(_check_fetched, config, name))
            config = _with_folder(config, name, folder)
    return config


def _check_fetched(config: MagiConfig, name: str, folder: Path) -> None:
    _CHECKS[name](_with_folder(config, name, folder))


def _with_folder(config: MagiConfig, name: str, folder: Path) -> MagiConfig:
    return replace(config, runtime_config=replace(config.runtime_config, **{name: str(folder)}))


def _check_folders(config: MagiConfig) -> None:
    """Refuse local folders that do not fit; those on the Hub are checked when they are here."""
    runtime = config.runtime_config
    for name in BESIDE:
        if not getattr(runtime, name):
            raise ValueError(f"{name} must name a folder, here or on the Hub.")
    for name, check in _CHECKS.items():
        if not HubFolder.parse(getattr(runtime, name)):
            check(config)


def _check_text_encoder(config: MagiConfig) -> None:
    check_text_encoder(config.runtime_config.t5_pretrained, config.model_config.caption_channels)


def _check_vae(config: MagiConfig) -> None:
    folder = Path(config.runtime_config.vae_pretrained).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"vae_pretrained names {folder}, which has no config.json.")
    model, vae = config.model_config, vae_settings(folder)
    wanted = {"patch_size": PIXELS, "patch_length": FRAMES}
    wanted["z_chans"] = model.in_channels // (2 if model.half_channel_vae else 1)
    for name, value in wanted.items():
        if vae.get(name, value) != value:
            raise ValueError(
                f"vae_pretrained names an autoencoder whose {name} is {vae[name]}; this model needs {value}."
            )
    check_vae(folder)


#: What refuses a folder whose files do not fit, by the key that names it.
_CHECKS = {"load": check_transformer, "vae_pretrained": _check_vae, "t5_pretrained": _check_text_encoder}
