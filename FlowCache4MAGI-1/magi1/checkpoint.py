"""Loads the official MAGI-1 checkpoints, strictly."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowcache.model_files import indexed_files, read_config, read_header
from flowcache.typed import as_type
from flowcache.user_files import reading

from .config import EngineSection, MagiConfig, ModelSection
from .config_files import check_mapping
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

#: The official repository on the Hub, and where it holds the weights of each size.
_REPOSITORY, _FOLDER = "sand-ai/MAGI-1", "ckpt/magi"
_OFFICIAL = [f"{size}_{kind}" for size in ("4.5B", "24B") for kind in ("distill", "distill_quant", "base")]

#: Where it holds what the transformer does not bring along.
BESIDE = {"vae_pretrained": "ckpt/vae", "t5_pretrained": "ckpt/t5"}

#: A folder on the Hub; see ``hub``.
HUB_EXAMPLE = f"{_REPOSITORY}/{_FOLDER}/{_OFFICIAL[0]}"

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
        kind = "distill_quant" if engine.fp8_quant else "distill" if engine.distill else "base"
        official = f"{_FOLDER}/{folder.parent.name if folder.parent.name in _OFFICIAL else f'4.5B_{kind}'}"
        wanted = " ".join(f'--include "{inside}/*"' for inside in (f"{official}/{name}", *BESIDE.values()))
        raise ValueError(
            f"load: expected a folder of weights, got {load}, which has no folder {name}; set load to "
            f"{_REPOSITORY}/{official}, which is downloaded at the first run or before by "
            f"`hf download {_REPOSITORY} {wanted}`."
        )
    return folder


def check_transformer(config: MagiConfig) -> None:
    """Refuse weights that are not those of a configuration; reads only the headers of their files.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen or damaged; it is named.
    """
    shapes = official_shapes(new_transformer(config.model_config), config.engine_config.fp8_quant)
    _locate_tensors(weight_folder(config.runtime_config.load, config.engine_config), shapes)


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
        ValueError: a file or tensor is missing, unknown, misshapen or corrupt; it is named.
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
        ValueError: a file or tensor is missing, unknown, misshapen or corrupt; it is named.
    """
    folder = Path(folder).expanduser()
    vae = _new_vae(folder)
    vae.load_state_dict(
        {k: v.float() for k, v in _read_checked(folder, _shapes(vae)).items()}, strict=True, assign=True
    )
    return vae.eval().requires_grad_(False)


def check_vae(folder: Path) -> None:
    """Refuse a VAE whose weights do not fit its ``config.json``; reads only the headers of their files.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen or damaged; it is named.
    """
    _locate_tensors(folder, _shapes(_new_vae(folder)))


def vae_settings(folder: Path) -> dict[str, Any]:
    """Arguments of the VAE in a folder, from its ``config.json``; no weight is read.

    Raises:
        ValueError: the file is missing, no JSON, or describes another model; the key is named.
    """
    path = folder / "config.json"
    content = read_config(path, {})
    if content.get("_class_name") not in ("ViTVAE", "AutoencoderKLMagi"):
        raise ValueError(f"{path} describes a {content.get('_class_name')}, not a ViTVAE.")
    described = check_mapping(content.get("ddconfig", content), f"{path}, ddconfig")
    kinds = get_type_hints(AutoencoderKLMagi.__init__)
    settings = {}
    for key, value in described.items():
        if key in kinds:
            settings[key] = as_type(value, kinds[key], f"{path}: {key}", spelled=True)
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


def _new_vae(folder: Path) -> AutoencoderKLMagi:
    """The VAE that a folder describes, on the meta device."""
    settings = vae_settings(folder)
    with reading(folder / "config.json", "an autoencoder"), torch.device("meta"):
        return AutoencoderKLMagi(**settings)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_checked(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors of a folder's weight files, if they are exactly those that are wanted."""
    tensors = {}
    for path in sorted(set(_locate_tensors(folder, shapes).values())):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _locate_tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file of each tensor, if the folder's weight files hold exactly those that are wanted."""
    found: dict[str, Path] = {}
    for path in _weight_files(folder):
        for name, shape in read_header(path).items():
            if name not in shapes:
                raise ValueError(f"{path} holds {name}, which the model does not know.")
            if shape != shapes[name]:
                raise ValueError(f"{path}: {name} must have shape {shapes[name]}, has {shape}.")
            if name in found:
                raise ValueError(f"{path} holds {name}, which {found[name].name} holds as well.")
            found[name] = path
    missing = sorted(shapes.keys() - found.keys())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} ({len(missing)} missing in all).")
    return found


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        files = indexed_files(index)
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
