"""Model folders of Wan's parts, in diffusers' and in the original layout: checked first, then loaded."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from .. import model_files
from ..model_files import DEFAULTS_FILE
from ..user_files import reading
from ..weight_files import BESIDE_ENCODER, WeightFiles, find_weight_files
from . import conversion
from .conversion import TEXT_ENCODER_FILE, VAE_FILE

#: Official models by width and number of layers.
FAMILIES = {(1536, 30): "1.3B", (5120, 40): "14B"}

_TOKENIZERS = {"diffusers": "tokenizer", "original": "google/umt5-xxl"}
# Class and usual weight file of each part of diffusers' layout.
_PARTS: dict[str, tuple[type[nn.Module], str]] = {
    "transformer": (SkyReelsV2Transformer3DModel, "diffusion_pytorch_model.safetensors"),
    "vae": (AutoencoderKLWan, "diffusion_pytorch_model.safetensors"),
    "text_encoder": (UMT5EncoderModel, "model.safetensors"),
}
# The same of the original layout, whose weights are in one folder; and what to download.
_ORIGINAL_FILES = {"transformer": "model.safetensors", "vae": VAE_FILE, "text_encoder": TEXT_ENCODER_FILE}
_ORIGINAL_PATTERNS = {**_ORIGINAL_FILES, "transformer": "*.safetensors"}
_RENAMES = {
    "transformer": conversion.transformer_key,
    "vae": conversion.vae_key,
    "text_encoder": conversion.text_encoder_key,
}


def list_patterns(layout: str, given: Mapping[str, Path]) -> list[str]:
    """List the files to download, without weights of parts that are ``given``."""
    parts = [part for part in _PARTS if part not in given]
    if layout == "original":
        return ["config.json", DEFAULTS_FILE, "google/*/*", *(_ORIGINAL_PATTERNS[part] for part in parts)]
    configs = ["model_index.json", DEFAULTS_FILE, "scheduler/*.json", "tokenizer/*"]
    return configs + [f"{part}/*.json" for part in _PARTS] + [f"{part}/*.safetensors" for part in parts]


def find_family(transformer: Any) -> str | None:
    """Find the official model that a transformer's configuration is of; None: none."""
    width = transformer.num_attention_heads * transformer.attention_head_dim
    return FAMILIES.get((width, transformer.num_layers))


def find_layout(folder: Path) -> str:
    """Return ``diffusers`` or ``original``; a ValueError names a folder that has neither layout."""
    for name, layout in (("model_index.json", "diffusers"), ("config.json", "original")):
        if (folder / name).is_file():
            return layout
    raise ValueError(f"model_id names {folder}, which holds neither model_index.json nor config.json.")


def check_folder(
    folder: Path, given: Mapping[str, Path] | None, check: Callable[[Path, str], object], key: str = ""
) -> tuple[str, Any]:
    """Refuse a folder that lacks a file or holds a damaged one; reads no weights.

    PyTorch files of the older format have no header; their tensors are checked when they are loaded.
    ``given``: files or folders, by part, that replace its weights in the folder. ``check`` refuses a folder in a
    layout that is of another model. ``key``: of the tensors in the file of a given transformer, among others.
    Returns the layout and the transformer's configuration. ValueError names the file, and the key or the tensor.
    """
    layout, given = find_layout(folder), given or {}
    if missing := [path for path in _list_files(folder, layout, given) if not path.is_file()]:
        raise ValueError(f"The model folder {folder} lacks {', '.join(str(p.relative_to(folder)) for p in missing)}.")
    check(folder, layout)
    models = _read_models(folder, layout)
    _check_parts(_find_parts(folder, layout, models, given, key), given)
    _load_scheduler(folder, layout)
    configs = {name: model.config for name, model in models.items()}
    model_files.load_tokenizer(folder / _TOKENIZERS[layout], configs["text_encoder"].vocab_size)
    _check_fit(configs, folder)
    return layout, configs["transformer"]


def check_given(given: Mapping[str, Path], family: str, key: str = "") -> None:
    """Refuse given weights that do not fit an official model, before the rest of it is downloaded."""
    models = _new_models(conversion.OFFICIAL_CONFIGS[family])
    _check_parts(_find_parts(Path(), "original", {name: models[name] for name in given}, given, key), given)


def load_folder(
    folder: Path,
    dtype: torch.dtype,
    vae_dtype: torch.dtype = torch.float32,
    given: Mapping[str, Path] | None = None,
    with_text: bool = True,
    key: str = "",
) -> dict[str, Any]:
    """Read the components of a pipeline, in evaluation mode, from a folder that ``check_folder`` accepts.

    Transformer and text encoder get ``dtype``, except for what diffusers keeps in fp32 (time embedding, modulation,
    norms). Without ``with_text``, the text encoder is None. ValueError names a file or tensor that is damaged or does
    not fit.
    """
    layout = find_layout(folder)
    parts = _find_parts(folder, layout, _read_models(folder, layout), given or {}, key)
    models = {
        part.name: part.load(partial(_type_of, part.name, dtype, vae_dtype))
        if with_text or part.name != "text_encoder"
        else None
        for part in parts
    }
    # The rotary tables are part of no checkpoint, so they are still on the meta device.
    rope = models["transformer"].rope
    models["transformer"].rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    tokenizer = model_files.load_tokenizer(folder / _TOKENIZERS[layout])
    return {**models, "tokenizer": tokenizer, "scheduler": _load_scheduler(folder, layout)}


def new_components(
    folder: Path | None, layout: str, family: str | None, dtype: torch.dtype, vae_dtype: torch.dtype
) -> dict[str, Any]:
    """Make the parts that ``load_folder`` loads on the meta device, by their configurations alone.

    Without a folder, they are those of the official ``family``, and there is no tokenizer.
    """
    if folder is None:
        models = _new_models(conversion.OFFICIAL_CONFIGS[family])
    else:
        models = _read_models(folder, layout)
    for name, model in models.items():
        weights = {key: tensor.to(_type_of(name, dtype, vae_dtype, key)) for key, tensor in model.state_dict().items()}
        model.load_state_dict(weights, assign=True)
    models["text_encoder"].tie_weights()
    tokenizer = folder and model_files.load_tokenizer(folder / _TOKENIZERS[layout])
    return {**models, "tokenizer": tokenizer, "scheduler": UniPCMultistepScheduler()}


def _type_of(part: str, dtype: torch.dtype, vae_dtype: torch.dtype, key: str) -> torch.dtype:
    """Type of a tensor of a part."""
    if part == "vae":
        return vae_dtype
    keeps_fp32 = SkyReelsV2Transformer3DModel._keep_in_fp32_modules
    is_fp32 = part == "transformer" and not {*keeps_fp32}.isdisjoint(key.split("."))
    return torch.float32 if is_fp32 else dtype


def _find_parts(
    folder: Path, layout: str, models: Mapping[str, nn.Module], given: Mapping[str, Path], key: str
) -> list[WeightFiles]:
    parts = []
    for name, model in models.items():
        unused = BESIDE_ENCODER if name == "text_encoder" else ""
        own_key = key if name == "transformer" and name in given else ""
        files = _find_files(folder, layout, name, given)
        parts.append(WeightFiles(name, model, files, _RENAMES[name], unused, own_key))
    return parts


def _find_files(folder: Path, layout: str, part: str, given: Mapping[str, Path]) -> list[Path]:
    """Find the weight files of a part; those of the folder may be missing, given ones are refused then."""
    if part in given:
        with _naming(part):
            files = find_weight_files(given[part], _PARTS[part][1])
        if missing := next((path for path in files if not path.is_file()), None):
            raise ValueError(f"{part}: expected a file or a folder with {missing.name}, got {given[part]}.")
        return files
    if layout == "diffusers":
        return find_weight_files(folder / part, _PARTS[part][1])
    return find_weight_files(folder, _ORIGINAL_FILES[part], beside=(VAE_FILE, TEXT_ENCODER_FILE))


def _check_parts(parts: Iterable[WeightFiles], given: Collection[str]) -> None:
    for part in parts:
        with _naming(part.name) if part.name in given else nullcontext():
            part.check()


@contextmanager
def _naming(part: str) -> Iterator[None]:
    """Put the option that names a part's weights before errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{part}: {error}") from error


def _read_models(folder: Path, layout: str) -> dict[str, nn.Module]:
    """Make the parts that the configurations of a folder describe, on the meta device."""
    if layout == "diffusers":
        return {part: _new_model(folder, part) for part in _PARTS}
    path = folder / "config.json"
    content = model_files.read_config(path, conversion.ORIGINAL_CONFIG)
    with reading(path, "a configuration"):
        return _new_models(content)


def _new_models(config: dict[str, Any]) -> dict[str, nn.Module]:
    """Make the parts of a model with an original configuration on the meta device."""
    config = conversion.transformer_config(config)
    with torch.device("meta"):
        transformer, vae = SkyReelsV2Transformer3DModel(**config), AutoencoderKLWan(**conversion.WAN_VAE)
        encoder = UMT5EncoderModel(UMT5Config(**conversion.UMT5_XXL))
    return {"transformer": transformer, "vae": vae, "text_encoder": encoder}


def _new_model(folder: Path, part: str) -> nn.Module:
    """Make a part of diffusers' layout on the meta device."""
    kind, path = _PARTS[part][0], folder / part / "config.json"
    is_diffusers = hasattr(kind, "load_config")
    # transformers checks most types by itself
    content = model_files.read_config(
        path, model_files.default_arguments(kind) if is_diffusers else {"model_type": ""}
    )
    with reading(path, "a configuration"), torch.device("meta"):
        if is_diffusers:
            return kind.from_config(content)
        return kind(kind.config_class.from_pretrained(path.parent, local_files_only=True))


def _list_files(folder: Path, layout: str, given: Mapping[str, Path]) -> list[Path]:
    """List the files that a folder must hold."""
    names = [f"{_TOKENIZERS[layout]}/tokenizer_config.json"]
    if layout == "diffusers":
        names += ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _PARTS)]
    weights = [_find_files(folder, layout, part, given) for part in _PARTS if part not in given]
    return [folder / name for name in names] + [path for files in weights for path in files]


def _load_scheduler(folder: Path, layout: str) -> UniPCMultistepScheduler:
    if layout == "original":  # which has no file for it; the shift is that of text-to-video
        sigmas = {"use_flow_sigmas": True, "flow_shift": 8.0}
        return UniPCMultistepScheduler(prediction_type="flow_prediction", **sigmas)
    path = folder / "scheduler" / "scheduler_config.json"
    model_files.read_config(path, model_files.default_arguments(UniPCMultistepScheduler))
    with reading(path, "a configuration"):
        return UniPCMultistepScheduler.from_pretrained(path.parent)


def _check_fit(configs: dict[str, Any], folder: Path) -> None:
    """Refuse parts that do not fit together or have sizes that no model has."""
    transformer, vae = configs["transformer"], configs["vae"]
    patch = 1 if vae.patch_size is None else vae.patch_size
    if not isinstance(patch, int) or patch < 1:
        raise ValueError(f"{folder}: vae, patch_size: expected a whole number of at least 1, got {patch!r}.")
    for name, found, wanted in (
        ("transformer, text_dim", transformer.text_dim, configs["text_encoder"].d_model),
        *((f"transformer, {key}", transformer[key], vae.z_dim) for key in ("in_channels", "out_channels")),
        ("transformer, patch_size", tuple(transformer.patch_size), (1, 2, 2)),
        *((f"vae, number of {key}", len(vae[key]), vae.z_dim) for key in ("latents_mean", "latents_std")),
        *((f"vae, {key}", vae[key], 3 * patch**2) for key in ("in_channels", "out_channels")),
        ("vae, scale_factor_temporal", vae.scale_factor_temporal, 4),
        ("vae, scale_factor_spatial", vae.scale_factor_spatial, 8),
    ):
        if found != wanted:
            got = f"got {found}; take all parts from the same model"
            raise ValueError(f"{folder}: {name}: expected {wanted}, as the other parts need it, {got}.")
