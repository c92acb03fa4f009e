"""Loads the official MAGI-1 checkpoints, strictly."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import EngineSection, MagiConfig, ModelSection
from .conversion import dequantise, official_shapes, transformer_key
from .transformer import MagiTransformer3DModel
from .vae import AutoencoderKLMagi

logger = logging.getLogger(__name__)

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def new_transformer(section: ModelSection) -> MagiTransformer3DModel:
    """The transformer of a configuration, on the meta device."""
    known = MagiTransformer3DModel._get_init_keys(MagiTransformer3DModel)
    with torch.device("meta"):
        return MagiTransformer3DModel(**{k: v for k, v in asdict(section).items() if k in known})


def weight_folder(load: str | Path, engine: EngineSection) -> Path:
    """Where a checkpoint folder holds the weights of a configuration.

    Raises:
        ValueError: there is no such folder.
    """
    name = "inference_weight" + ".fp8" * engine.fp8_quant + ".distill" * engine.distill
    folder = Path(load).expanduser() / name
    if not folder.is_dir():
        raise ValueError(f"load names {load}, which has no folder {name}.")
    return folder


def load_transformer(config: MagiConfig, dtype: torch.dtype | None = None) -> MagiTransformer3DModel:
    """Read the transformer of a configuration: every tensor must be there, known and of the right shape.

    Quantised weights are turned into plain bf16 ones.

    Args:
        config: what to load and where it lies.
        dtype: of the weights, but for the parts that the official loader keeps in fp32; None takes the
            configuration's ``params_dtype``.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen or corrupt; it is named.
    """
    folder = weight_folder(config.runtime_config.load, config.engine_config)
    model = new_transformer(config.model_config)
    fp8 = config.engine_config.fp8_quant
    if fp8:
        logger.warning("fp8 weights are dequantised to bf16: slower and larger than fp8 arithmetic.")
    tensors = _read_checked(folder, official_shapes(model, fp8))
    dtype = dtype or getattr(torch, config.model_config.params_dtype.removeprefix("torch."))
    state = {}
    for official in list(tensors):
        if official.endswith("_scale"):
            continue
        name = transformer_key(official)
        kept = any(part in model._keep_in_fp32_modules for part in name.split("."))
        state[name] = dequantise(tensors, official).to(torch.float32 if kept else dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def load_vae(folder: str | Path) -> AutoencoderKLMagi:
    """Read the official VAE, ``config.json`` and safetensors beside it, in fp32.

    Raises:
        ValueError: a file or tensor is missing, unknown, misshapen or corrupt; it is named.
    """
    folder = Path(folder).expanduser()
    content = _read_json(folder / "config.json")
    if content.get("_class_name") not in ("ViTVAE", "AutoencoderKLMagi"):
        raise ValueError(f"{folder / 'config.json'} describes a {content.get('_class_name')}, not a ViTVAE.")
    known = AutoencoderKLMagi._get_init_keys(AutoencoderKLMagi)
    settings = {k: v for k, v in content.get("ddconfig", content).items() if k in known}
    with torch.device("meta"):
        vae = AutoencoderKLMagi(**settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    tensors = _read_checked(folder, shapes)
    vae.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


def _read_checked(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All tensors of a folder's weight files, if they are exactly those that are wanted."""
    found: dict[str, Path] = {}
    for path in _weight_files(folder):
        for name, shape in _read_shapes(path).items():
            if name not in shapes:
                raise ValueError(f"{path} holds {name}, which the model does not know.")
            if shape != shapes[name]:
                raise ValueError(f"{path}: {name} must have shape {shapes[name]}, has {shape}.")
            if name in found:
                raise ValueError(f"{path} holds {name}, which {found[name].name} holds as well.")
            found[name] = path
    missing = sorted(shapes.keys() - found.keys())
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]} and {len(missing) - 1} other tensors.")
    tensors = {}
    for path in sorted(set(found.values())):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        files = sorted({folder / name for name in _read_json(index).get("weight_map", {}).values()})
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


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}.") from error


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
