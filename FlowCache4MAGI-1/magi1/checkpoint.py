"""Loads the official MAGI-1 checkpoints, strictly: each tensor exists, is known and has the right shape.

What a function here refuses is a ValueError that names the file and the tensor or key.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowcache.model_files import indexed_files, read_config, read_header
from flowcache.typed import as_type, check_keys
from flowcache.user_files import reading

from .config import FRAMES, PIXELS, EngineSection, MagiConfig, ModelSection
from .conversion import dequantise, official_key, official_shapes, quantised_state
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi

logger = logging.getLogger(__name__)

#: Keys of the official VAE's configuration that can have one value only.
_VAE_ALWAYS = {"conv_last_layer": True, "double_z": True, "norm_code": False, "use_rope": False}
_VAE_ALWAYS |= {"with_cls_token": True}
_VAE_COUNTS = ("embed_dim", "num_heads", "patch_size", "patch_length", "z_chans", "depth", "in_chans")

#: The official repository on the Hub, and its folders: weights of each size, and the parts beside them.
REPOSITORY, _FOLDER = "sand-ai/MAGI-1", "ckpt/magi"
_OFFICIAL = [f"{size}_{kind}" for size in ("4.5B", "24B") for kind in ("distill", "distill_quant", "base")]
BESIDE = {"vae_pretrained": "ckpt/vae", "t5_pretrained": "ckpt/t5"}

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def new_transformer(section: ModelSection, fp8: bool = False) -> MagiTransformer3DModel:
    """The transformer of a configuration, on the meta device; ``fp8``: for quantised weights."""
    known = MagiTransformer3DModel._get_init_keys(MagiTransformer3DModel)
    with torch.device("meta"):
        settings = {k: v for k, v in asdict(section).items() if k in known}
        return MagiTransformer3DModel(**settings, fp8_quant=fp8)


def weight_folder_name(engine: EngineSection) -> str:
    """The folder, inside a checkpoint's, with the weights of a configuration."""
    return "inference_weight" + ".fp8" * engine.fp8_quant + ".distill" * engine.distill


def weight_folder(load: str | Path, engine: EngineSection) -> Path:
    if not str(load):
        raise ValueError(
            f"load must name a folder of weights, here or on the Hub ({REPOSITORY}/{_FOLDER}/{_OFFICIAL[0]})."
        )
    name = weight_folder_name(engine)
    folder = Path(load).expanduser() / name
    if not folder.is_dir():
        kind = "distill_quant" if engine.fp8_quant else "distill" if engine.distill else "base"
        official = f"{_FOLDER}/{folder.parent.name if folder.parent.name in _OFFICIAL else f'4.5B_{kind}'}"
        wanted = " ".join(f'--include "{inside}/*"' for inside in (f"{official}/{name}", *BESIDE.values()))
        raise ValueError(
            f"load: expected a folder of weights, got {load}, which has no folder {name}; set load to "
            f"{REPOSITORY}/{official}, which is downloaded at the first run or before by "
            f"`hf download {REPOSITORY} {wanted}`."
        )
    return folder


def check_transformer(load: str | Path, config: MagiConfig) -> None:
    """Refuse weights that do not fit a configuration; reads only the headers of their files."""
    shapes = official_shapes(new_transformer(config.model_config), config.engine_config.fp8_quant)
    _locate_tensors(weight_folder(load, config.engine_config), shapes)


def load_transformer(
    load: str | Path, config: MagiConfig, dtype: torch.dtype | None = None, keep_fp8: bool = False
) -> MagiTransformer3DModel:
    """Load the transformer of a configuration from a checkpoint's folder.

    Args:
        load, config: the folder, and its configuration.
        dtype: of the weights, except for those that stay in fp32; None: the configuration's ``params_dtype``.
        keep_fp8: leave quantised weights in fp8, for devices that multiply them (``multiplies_fp8``); False
            converts them, with a warning.
    """
    plain, fp8 = new_transformer(config.model_config), config.engine_config.fp8_quant
    dtype = dtype or config.model_config.dtype
    if fp8 and not keep_fp8:
        logger.warning(
            "fp8 weights are turned into %s, as the device does not multiply in fp8 (GPUs from compute "
            "capability 8.9 on do): they need more memory, and are no faster than plain ones.",
            str(dtype).removeprefix("torch."),
        )
    tensors = _read_checked(weight_folder(load, config.engine_config), official_shapes(plain, fp8))
    state = {}
    for name in plain.state_dict():
        official = official_key(name)
        quantised = quantised_state(tensors, official) if keep_fp8 else None
        if quantised is None:
            kept = torch.float32 if plain.keeps_fp32(name) else dtype
            state[name] = dequantise(tensors, official).to(kept)
        else:
            state |= {f"{name.removesuffix('weight')}{part}": value for part, value in quantised.items()}
        del tensors[official]  # The weights would be in memory twice.
    model = new_transformer(config.model_config, fp8 and keep_fp8)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def load_vae(folder: Path) -> AutoencoderKLMagi:
    """Load the official VAE, ``config.json`` and safetensors beside it, in fp32."""
    vae = new_vae(folder)
    state = {name: tensor.float() for name, tensor in _read_checked(folder, _shapes(vae)).items()}
    vae.load_state_dict(state, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


def check_vae(folder: Path, config: MagiConfig) -> None:
    """Refuse a VAE that does not fit the transformer; reads only the headers of its weight files."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"vae_pretrained names {folder}, which has no config.json.")
    vae, section = new_vae(folder), config.model_config
    wanted = {"patch_size": PIXELS, "patch_length": FRAMES}
    wanted["z_chans"] = section.in_channels // (2 if section.half_channel_vae else 1)
    for name, value in wanted.items():
        if vae.config[name] != value:
            raise ValueError(f"vae_pretrained: expected {name} {value}, got {vae.config[name]} in {folder}.")
    _locate_tensors(folder, _shapes(vae))


def new_vae(folder: Path | None) -> AutoencoderKLMagi:
    """The VAE that a folder's ``config.json`` describes, or the official one, on the meta device."""
    if folder is None:
        with torch.device("meta"):
            return AutoencoderKLMagi()
    path = folder / "config.json"
    content = read_config(path, {})
    if content.get("_class_name") not in ("ViTVAE", "AutoencoderKLMagi"):
        raise ValueError(f"{path} describes a {content.get('_class_name')}, not a ViTVAE.")
    kinds = get_type_hints(AutoencoderKLMagi.__init__)
    settings: dict[str, Any] = {}
    described = content.get("ddconfig", content)
    for key, value in check_keys(described, described, f"{path}, ddconfig").items():
        if key in kinds:
            settings[key] = as_type(value, kinds[key], f"{path}: {key}", spelled=True)
        elif value != _VAE_ALWAYS.get(key, value):
            raise ValueError(f"{path}: {key} must be {json.dumps(_VAE_ALWAYS[key])}, got {json.dumps(value)}.")
        elif key not in _VAE_ALWAYS and not key.startswith("_"):
            logger.warning("%s: %s is ignored: the autoencoder does not know it.", path, key)
    for key in _VAE_COUNTS:
        if settings.get(key, 1) < 1:
            raise ValueError(f"{path}: {key} must be at least 1, got {settings[key]}.")
    with reading(path, "an autoencoder"), torch.device("meta"):
        return AutoencoderKLMagi(**settings)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_checked(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read the tensors of a folder's weight files, exactly those of ``shapes``."""
    tensors = {}
    for path in sorted(set(_locate_tensors(folder, shapes).values())):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _locate_tensors(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """Find the file of each tensor; refuse others than those of ``shapes``."""
    found: dict[str, Path] = {}
    for path in _find_weight_files(folder):
        for name, shape in read_header(path).items():
            if name not in shapes:
                raise ValueError(f"{path} holds {name}, which the model does not know.")
            if shape != shapes[name]:
                raise ValueError(f"{path}: {name} must have shape {shapes[name]}, has {shape}.")
            if name in found:
                raise ValueError(f"{path} holds {name}, which {found[name].name} holds as well.")
            found[name] = path
    if missing := sorted(shapes.keys() - found.keys()):
        raise ValueError(f"{folder} lacks {missing[0]} ({len(missing)} missing in all).")
    return found


def _find_weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        files = indexed_files(folder / _INDEX)
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
