"""Model folders of SkyReels-V2, in diffusers' and in the original layout: checked first, then loaded."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from flowcache import model_files
from flowcache.files import shipped
from flowcache.user_files import reading

from . import conversion
from .conversion import TEXT_ENCODER_FILE, VAE_FILE
from .settings import DEFAULTS_FILE, read_defaults

#: The small checkpoint of this repository.
SMALL = shipped("assets/skyreels_v2_small")

#: Official models by width and number of layers.
FAMILIES = {(1536, 30): "1.3B", (5120, 40): "14B"}

_TOKENIZERS = {"diffusers": "tokenizer", "original": "google/umt5-xxl"}
# Class and name of the weight file of each part of diffusers' layout.
_PARTS: dict[str, tuple[type[nn.Module], str]] = {
    "transformer": (SkyReelsV2Transformer3DModel, "diffusion_pytorch_model"),
    "vae": (AutoencoderKLWan, "diffusion_pytorch_model"),
    "text_encoder": (UMT5EncoderModel, "model"),
}

#: Files to download, by layout.
PATTERNS = {
    "diffusers": ["model_index.json", DEFAULTS_FILE, "scheduler/*.json", "tokenizer/*"]
    + [f"{part}/*.{suffix}" for part in _PARTS for suffix in ("json", "safetensors")],
    "original": ["config.json", DEFAULTS_FILE, "*.safetensors", VAE_FILE, TEXT_ENCODER_FILE, "google/*/*"],
}


@dataclass(frozen=True)
class _Part:
    """A model on the meta device and its files; ``rename`` translates stored names to the model's."""

    model: nn.Module
    files: list[Path]
    rename: Callable[[str], str] = str

    def read(self) -> dict[str, Tensor]:
        shapes = model_files.list_shapes(self.model)
        return model_files.read_weights(self.files, shapes, self.rename, _tied_names(self.model))


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


def check_folder(folder: Path) -> tuple[str, Any]:
    """Refuse a folder that lacks a file or holds a damaged one; reads no weights.

    PyTorch files of the older format have no header; their tensors are checked when they are loaded.
    Returns the layout and the transformer's configuration. ValueError names the file, and the key or the tensor.
    """
    layout = find_layout(folder)
    if missing := [name for name in _list_files(folder, layout) if not (folder / name).is_file()]:
        raise ValueError(f"The model folder {folder} lacks {', '.join(missing)}.")
    read_defaults(folder)
    if layout == "diffusers":
        _check_kind(folder)
    parts = _find_parts(folder, layout)
    for part in parts.values():
        if all(map(model_files.can_map, part.files)):
            part.read()
    _load_scheduler(folder, layout)
    configs = {name: part.model.config for name, part in parts.items()}
    model_files.load_tokenizer(folder / _TOKENIZERS[layout], configs["text_encoder"].vocab_size)
    _check_fit(configs, folder)
    return layout, configs["transformer"]


def load_folder(folder: Path, dtype: torch.dtype, vae_dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Read the components of a pipeline, in evaluation mode, from a folder that ``check_folder`` accepts.

    Transformer and text encoder get ``dtype``, except for what diffusers keeps in fp32 (time embedding, modulation,
    norms). ValueError names a file or tensor that is damaged or does not fit.
    """
    layout, models = find_layout(folder), {}
    for name, part in _find_parts(folder, layout).items():
        weights = part.read()
        weights = {key: tensor.to(_type_of(name, key, dtype, vae_dtype)) for key, tensor in weights.items()}
        tied = _tied_names(part.model)
        for key in tied - weights.keys():
            weights[key] = next(weights[other] for other in tied if other in weights)
        part.model.load_state_dict(weights, assign=True)
        models[name] = part.model.eval()
    # The rotary tables are part of no checkpoint, so they are still on the meta device.
    rope = models["transformer"].rope
    models["transformer"].rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    models["text_encoder"].tie_weights()
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
        models = {name: part.model for name, part in _find_parts(folder, layout).items()}
    for name, model in models.items():
        weights = {key: tensor.to(_type_of(name, key, dtype, vae_dtype)) for key, tensor in model.state_dict().items()}
        model.load_state_dict(weights, assign=True)
    models["text_encoder"].tie_weights()
    tokenizer = folder and model_files.load_tokenizer(folder / _TOKENIZERS[layout])
    return {**models, "tokenizer": tokenizer, "scheduler": UniPCMultistepScheduler()}


def _type_of(part: str, key: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> torch.dtype:
    """Type of a tensor of a part."""
    if part == "vae":
        return vae_dtype
    keeps_fp32 = SkyReelsV2Transformer3DModel._keep_in_fp32_modules
    is_fp32 = part == "transformer" and not {*keeps_fp32}.isdisjoint(key.split("."))
    return torch.float32 if is_fp32 else dtype


def _find_parts(folder: Path, layout: str) -> dict[str, _Part]:
    if layout == "diffusers":
        return {part: _Part(_new_model(folder, part), _find_files(folder, part)) for part in _PARTS}
    path = folder / "config.json"
    content = model_files.read_config(path, conversion.ORIGINAL_CONFIG)
    with reading(path, "a configuration"):
        models = _new_models(content)
    stored = {
        "transformer": (sorted(folder.glob("*.safetensors")), conversion.transformer_key),
        "vae": ([folder / VAE_FILE], conversion.vae_key),
        "text_encoder": ([folder / TEXT_ENCODER_FILE], conversion.text_encoder_key),
    }
    return {name: _Part(model, *stored[name]) for name, model in models.items()}


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


def _find_files(folder: Path, part: str) -> list[Path]:
    return model_files.find_weight_files(folder / part, _PARTS[part][1])


def _list_files(folder: Path, layout: str) -> list[str]:
    """List the files that a folder must hold, relative to it."""
    names = [f"{_TOKENIZERS[layout]}/tokenizer_config.json"]
    if layout == "diffusers":
        names += ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _PARTS)]
        return names + [str(path.relative_to(folder)) for part in _PARTS for path in _find_files(folder, part)]
    names += [VAE_FILE, TEXT_ENCODER_FILE]
    shards = sorted(path.name for path in folder.glob("*.safetensors")) or ["*.safetensors"]
    if shard := re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", shards[0]):
        count = int(shard[2])
        shards = [f"{shard[1]}-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    return names + shards


def _check_kind(folder: Path) -> None:
    """Refuse models that were not trained for diffusion forcing; their weights look the same."""
    ours = SkyReelsV2Transformer3DModel.__name__
    pipeline = model_files.read_config(folder / "model_index.json", {"_class_name": ""}).get("_class_name")
    config = {"_class_name": ours} | model_files.read_config(folder / "transformer" / "config.json", {})
    others = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")
    if pipeline in others or config.get("image_dim") is not None or config["_class_name"] != ours:
        found = f"{folder}, a {pipeline} with a {config['_class_name']}"
        raise ValueError(f"model_id names {found}; only SkyReels-V2 diffusion-forcing (DF) models are supported.")


def _load_scheduler(folder: Path, layout: str) -> UniPCMultistepScheduler:
    if layout == "original":  # which has no file for it; the shift is that of text-to-video
        sigmas = {"use_flow_sigmas": True, "flow_shift": 8.0}
        return UniPCMultistepScheduler(prediction_type="flow_prediction", **sigmas)
    path = folder / "scheduler" / "scheduler_config.json"
    model_files.read_config(path, model_files.default_arguments(UniPCMultistepScheduler))
    with reading(path, "a configuration"):
        return UniPCMultistepScheduler.from_pretrained(path.parent)


def _tied_names(model: nn.Module) -> set[str]:
    """Names of tensors of which one is enough. Older versions of transformers list only some of them."""
    tied = getattr(model, "_tied_weights_keys", None) or {}
    return {*tied, *(tied.values() if isinstance(tied, dict) else ())}


def _check_fit(configs: dict[str, Any], folder: Path) -> None:
    """Refuse parts that do not fit together or have sizes that no SkyReels-V2 model has."""
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
