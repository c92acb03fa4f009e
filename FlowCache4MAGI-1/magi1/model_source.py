"""Which model a run takes: the official weights that its configuration names, or the small checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, T5EncoderModel

from .checkpoint import load_transformer, load_vae, vae_settings, weight_folder
from .config import FRAMES, PIXELS, MagiConfig
from .pipeline import MagiPipeline
from .vae import Tiling

logger = logging.getLogger(__name__)

SMALL = Path(__file__).resolve().parents[2] / "assets" / "magi1_small"
T5_FOLDER = "t5-v1_1-xxl"

#: What a user's configuration says of the sampling and not of the model; it holds for the small one, too.
_KEPT = ("num_steps", "window_size", "seed", "noise2clean_kvrange", "clean_chunk_kvrange")


@dataclass(frozen=True)
class ModelSource:
    """A configuration whose folders are there; decided before any weight is read.

    Attributes:
        config: what to load and to run.
        reason: one sentence that says which model and why.
    """

    config: MagiConfig
    reason: str


def resolve_model(
    config_file: str | Path,
    overrides: Mapping[str, Any] | None = None,
    model: str = "auto",
    device: torch.device | str | None = None,
) -> ModelSource:
    """Decide which model to load; reads no weights.

    Args:
        config_file: a configuration in three sections.
        overrides: keys of any section that replace those of the file.
        model: ``official`` takes the folders that the configuration names; ``small`` the small checkpoint,
            with the steps, window, seed and ranges of the configuration; ``auto`` the official one if
            ``overrides`` say where it lies, or on CUDA if its folder is there, else the small one.
        device: where it is to run; only ``auto`` looks at it. None takes CUDA if it is there.

    Raises:
        ValueError: one sentence that names what is wrong in the configuration, or the folder that is missing.
    """
    config = MagiConfig.from_file(config_file, overrides)
    if model not in ("auto", "official", "small"):
        raise ValueError(f"model must be auto, official or small, got {model!r}.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    load, why = config.runtime_config.load, _why_official(config, overrides or {}, model, device)
    if why is not None:
        _check_folders(config)
        return ModelSource(config, f"{why}: using the official weights in {load}")
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
    missing = f"no official weights in {load or 'load'}"
    why = "asked for small" if model == "small" else missing if device.type == "cuda" else "no CUDA device"
    return ModelSource(
        replace(small, runtime_config=runtime), f"{why}: using the small checkpoint in assets/"
    )


def load_pipeline(source: ModelSource, device: torch.device | str | None = None) -> MagiPipeline:
    """Read text encoder, transformer and VAE: in the configuration's types on CUDA, in fp32 elsewhere.

    The text encoder, in fp32 always, stays on the CPU if ``t5_device`` says so.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen or corrupt; it is named.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    logger.info("model: %s", source.reason)
    config = source.config
    runtime, engine = config.runtime_config, config.engine_config
    for name in engine.unused:
        logger.warning("%s has no effect yet: one device runs everything.", name)
    transformer = load_transformer(config, None if device.type == "cuda" else torch.float32)
    vae = load_vae(runtime.vae_pretrained)
    vae.register_to_config(scaling_factor=runtime.scale_factor)
    vae.enable_tiling(Tiling(frames=max(runtime.fps // 2, vae.config.patch_length)))
    folder = Path(runtime.t5_pretrained).expanduser() / T5_FOLDER
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    for part in (transformer, vae):
        part.to(device)
    if runtime.t5_device != "cpu":
        encoder.to(device)
    return MagiPipeline(tokenizer, encoder, transformer, vae)


def _why_official(
    config: MagiConfig, overrides: Mapping[str, Any], model: str, device: torch.device
) -> str | None:
    """Why the official weights are taken; None: they are not."""
    if model == "official":
        return "asked for official"
    load = config.runtime_config.load
    if model == "auto" and overrides.get("load"):
        return "load was given"
    if model == "auto" and device.type == "cuda" and load and Path(load).expanduser().is_dir():
        return "CUDA device"
    return None


def _check_folders(config: MagiConfig) -> None:
    runtime = config.runtime_config
    weight_folder(runtime.load, config.engine_config)
    for name, inside in (("vae_pretrained", "config.json"), ("t5_pretrained", f"{T5_FOLDER}/config.json")):
        folder = Path(getattr(runtime, name)).expanduser()
        if not (folder / inside).is_file():
            raise ValueError(f"{name} names {folder}, which has no {inside}.")
    model, vae = config.model_config, vae_settings(Path(runtime.vae_pretrained).expanduser())
    wanted = {"patch_size": PIXELS, "patch_length": FRAMES}
    wanted["z_chans"] = model.in_channels // (2 if model.half_channel_vae else 1)
    for name, value in wanted.items():
        if vae.get(name, value) != value:
            raise ValueError(
                f"vae_pretrained names an autoencoder whose {name} is {vae[name]}; this model needs {value}."
            )
