"""Loads the official MAGI-1 checkpoints, strictly."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowcache.weights import check_float

from .config import EngineSection, MagiConfig, ModelSection
from .config_files import cast, check_mapping, read_file
from .conversion import dequantise, is_quantised, official_key, official_shapes, quantised_state
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi

logger = logging.getLogger(__name__)

#: What the official configuration says besides, and must say: the autoencoder has no other way.
_VAE_ALWAYS = {
    "conv_last_layer": True,
    "double_z": True,
    "norm_code": False,
    "use_rope": False,
    "with_cls_token": True,
}

#: A folder on the Hub; see ``hub``.
HUB_EXAMPLE = "sand-ai/MAGI-1/ckpt/magi/4.5B_distill"

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def new_transformer(section: ModelSection, fp8: bool = False) -> MagiTransformer3DModel:
    """The transformer of a configuration, on the meta device; ``fp8``: laid out for quantised weights."""
    known = MagiTransformer3DModel._get_init_keys(MagiTransformer3DModel)
    with torch.device("meta"):
        settings = {k: v for k, v in asdict(section).items() if k in known}
        return MagiTransformer3DModel(**settings, fp8_quant=fp8)


def weight_folder_name(engine: EngineSection) -> str:
    """Where, inside a checkpoint folder, the weights of a configuration lie."""
    return "inference_weight" + ".fp8" * engine.fp8_quant + ".distill" * engine.distill


def weight_folder(load: str | Path, engine: EngineSection) -> Path:
    """The folder that holds the weights of a configuration.

    Raises:
        ValueError: there is no such folder.
    """
    if not str(load):
        raise ValueError(f"load must name a folder of weights, here or on the Hub ({HUB_EXAMPLE}).")
    name = weight_folder_name(engine)
    folder = Path(load).expanduser() / name
    if not folder.is_dir():
        hint = "" if folder.parent.is_dir() else f"; a folder on the Hub is named as {HUB_EXAMPLE} is"
        raise ValueError(f"load names {load}, which has no folder {name}{hint}.")
    return folder


def load_transformer(
    config: MagiConfig, dtype: torch.dtype | None = None, keep_fp8: bool = False
) -> MagiTransformer3DModel:
    """Read the transformer of a configuration: every tensor must be there, known and of the right shape.

    Args:
        config: what to load and where it lies.
        dtype: of the weights, but for the parts that the official loader keeps in fp32; None takes the
            configuration's ``params_dtype``.
        keep_fp8: leave quantised weights in fp8, which only some GPUs can run (``multiplies_fp8``); False
            turns them into plain ones, with a warning.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen, of integers or corrupt; it is named.
    """
    folder = weight_folder(config.runtime_config.load, config.engine_config)
    plain = new_transformer(config.model_config)
    fp8 = config.engine_config.fp8_quant
    dtype = dtype or getattr(torch, config.model_config.params_dtype.removeprefix("torch."))
    if fp8 and not keep_fp8:
        logger.warning(
            "fp8 weights are turned into %s, as the device does not multiply in fp8 (GPUs from compute "
            "capability 8.9 on do): they need more memory, and are no faster than plain ones.",
            str(dtype).removeprefix("torch."),
        )
    tensors = _read_checked(folder, official_shapes(plain, fp8))
    state = {}
    for name in plain.state_dict():
        official = official_key(name)
        if keep_fp8 and is_quantised(tensors, official):
            stem = name.removesuffix("weight")
            state |= {f"{stem}{part}": value for part, value in quantised_state(tensors, official).items()}
        else:
            kept = any(part in plain._keep_in_fp32_modules for part in name.split("."))
            state[name] = dequantise(tensors, official).to(torch.float32 if kept else dtype)
        del tensors[official]  # else the weights would be held twice
    model = new_transformer(config.model_config, fp8 and keep_fp8)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def load_vae(folder: str | Path) -> AutoencoderKLMagi:
    """Read the official VAE, ``config.json`` and safetensors beside it, in fp32.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen, of integers or corrupt; it is named.
    """
    folder = Path(folder).expanduser()
    with torch.device("meta"):
        vae = AutoencoderKLMagi(**vae_settings(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    tensors = _read_checked(folder, shapes)
    vae.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


def vae_settings(folder: Path) -> dict[str, Any]:
    """Arguments of the VAE in a folder, from its ``config.json``; no weight is read.

    Raises:
        ValueError: the file is missing, no JSON, or describes another model; the key is named.
    """
    path = folder / "config.json"
    content = read_file(path, json.loads, "JSON")
    if content.get("_class_name") not in ("ViTVAE", "AutoencoderKLMagi"):
        raise ValueError(f"{path} describes a {content.get('_class_name')}, not a ViTVAE.")
    described = check_mapping(content.get("ddconfig", content), f"{path}, ddconfig")
    kinds = get_type_hints(AutoencoderKLMagi.__init__)
    settings = {}
    for key, value in described.items():
        if key in kinds:
            settings[key] = cast(value, kinds[key].__name__, key, str(path))
        elif value != _VAE_ALWAYS.get(key, value):
            raise ValueError(
                f"{path}: {key} must be {json.dumps(_VAE_ALWAYS[key])}, got {json.dumps(value)}."
            )
        elif key not in _VAE_ALWAYS and not key.startswith("_"):
            logger.warning("%s: %s has no effect: the autoencoder does not know it.", path, key)
    for key in ("embed_dim", "num_heads", "patch_size", "patch_length", "z_chans", "depth", "in_chans"):
        if settings.get(key, 1) < 1:
            raise ValueError(f"{path}: {key} must be at least 1, got {settings[key]}.")
    return settings


def _read_checked(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors of a folder's weight files, if they are exactly those that are wanted."""
    found: dict[str, Path] = {}
    for path in _weight_files(folder):
        for name, (shape, dtype) in _read_header(path).items():
            if name not in shapes:
                raise ValueError(f"{path} holds {name}, which the model does not know.")
            check_float(path, name, dtype)
            if shape != shapes[name]:
                raise ValueError(f"{path}: {name} must have shape {shapes[name]}, has {shape}.")
            if name in found:
                raise ValueError(f"{path} holds {name}, which {found[name].name} holds as well.")
            found[name] = path
    missing = sorted(shapes.keys() - found.keys())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} ({len(missing)} missing in all).")
    tensors = {}
    for path in sorted(set(found.values())):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        listed = check_mapping(
            read_file(index, json.loads, "JSON").get("weight_map", {}), f"{index}, weight_map"
        )
        files = sorted({folder / str(name) for name in listed.values()})
    else:
        files = [folder / _SINGLE]
        if not files[0].is_file() and not files[0].with_name(f"{_SINGLE}.zst").is_file():
            files = sorted(folder.glob("*.safetensors")) or files
    for path in files:
        if not path.is_file():
            packed = path.with_name(f"{path.name}.zst")
            hint = f"; unpack it first: zstd -d {packed}" if packed.is_file() else "."
            raise ValueError(f"{folder} lacks {path.name}{hint}")
    return files


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}.") from error
