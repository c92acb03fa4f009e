"""Folders of SkyReels-V2 models, in diffusers' layout and in the original one: checked, then loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from torch import nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from flowcache.model_files import (
    check_vocabulary,
    default_arguments,
    indexed_files,
    load_tokenizer,
    read_config,
    read_header,
)
from flowcache.user_files import reading

from .conversion import (
    TEXT_ENCODER_FILE,
    VAE_FILE,
    TensorCheck,
    check_original_weights,
    load_original_models,
    new_original_models,
)
from .settings import DEFAULTS_FILE, OFFICIAL_DEFAULTS, VideoSettings

#: Scheduler of the original layout, which holds none; the shift is that of text-to-video.
FLOW_SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 8.0}

# Parts of diffusers' layout that hold weights: their class, and how their weight files are called.
_MODELS: dict[str, type[nn.Module]] = {
    "transformer": SkyReelsV2Transformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
}
_WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_TOKENIZER = "google/umt5-xxl"
# Pipelines whose weights are of the same form, but were not trained for diffusion forcing.
_OTHER_PIPELINES = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")

#: Files that are needed, by layout.
PATTERNS = {
    "diffusers": [
        "model_index.json",
        DEFAULTS_FILE,
        "scheduler/*.json",
        "tokenizer/*",
        *(f"{part}/*.{suffix}" for part in _WEIGHTS for suffix in ("json", "safetensors")),
    ],
    "original": [
        "config.json",
        DEFAULTS_FILE,
        "*.safetensors",
        VAE_FILE,
        TEXT_ENCODER_FILE,
        f"{_TOKENIZER}/*",
    ],
}


@dataclass(frozen=True)
class Components:
    """What a pipeline is made of; all on the CPU, in evaluation mode.

    Attributes:
        tokenizer: turns prompts to token ids.
        text_encoder: umT5 encoder.
        transformer: denoises; in the type asked for, with the parts that diffusers keeps in fp32.
        vae: between pixels and latents; in fp32.
        scheduler: configured for flow matching.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel
    transformer: SkyReelsV2Transformer3DModel
    vae: AutoencoderKLWan
    scheduler: UniPCMultistepScheduler


def find_layout(folder: Path) -> str:
    """Return ``diffusers`` or ``original``.

    Raises:
        ValueError: the folder has neither layout.
    """
    for name, layout in (("model_index.json", "diffusers"), ("config.json", "original")):
        if (folder / name).is_file():
            return layout
    raise ValueError(
        f"model_id names {folder}, which holds neither model_index.json (diffusers' layout) "
        "nor config.json (the original layout)."
    )


def check_folder(folder: Path, layout: str) -> Any:
    """Refuse a folder that lacks a file or holds a damaged one; reads no weights.

    Returns:
        The transformer's configuration.

    Raises:
        ValueError: one sentence that names the file, and the key or the tensor.
    """
    _check_complete(folder, layout)
    read_defaults(folder)
    if layout == "diffusers":
        _check_kind(folder)
        models = {part: _new_model(folder, part) for part in _MODELS}
        for part, model in models.items():
            _check_tensors(folder, part, model)
        _load_scheduler(folder)
    else:
        models = new_original_models(folder)
        check_original_weights(folder, models)
    tokenizer = load_tokenizer(folder / ("tokenizer" if layout == "diffusers" else _TOKENIZER))
    configs = {part: model.config for part, model in models.items()}
    check_vocabulary(tokenizer, configs["text_encoder"].vocab_size, folder)
    _check_fit(configs, folder)
    return configs["transformer"]


def _check_kind(folder: Path) -> None:
    """Refuse models of another kind."""
    pipeline = read_config(folder / "model_index.json", {"_class_name": ""}).get("_class_name")
    config = read_config(folder / "transformer" / "config.json", {})
    kind = config.get("_class_name", SkyReelsV2Transformer3DModel.__name__)
    if (
        pipeline in _OTHER_PIPELINES
        or config.get("image_dim") is not None
        or kind != SkyReelsV2Transformer3DModel.__name__
    ):
        raise ValueError(
            f"model_id names {folder}, a {pipeline} with a {kind}; "
            "only SkyReels-V2 diffusion-forcing (DF) models are supported."
        )


def _check_complete(folder: Path, layout: str) -> None:
    missing = list(_missing_diffusers(folder) if layout == "diffusers" else _missing_original(folder))
    if missing:
        raise ValueError(f"The model folder {folder} lacks {', '.join(missing)}.")


def _missing_diffusers(folder: Path) -> Iterator[str]:
    configs = ("tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json")
    for name in (*configs, *(f"{part}/config.json" for part in _WEIGHTS)):
        if not (folder / name).is_file():
            yield name
    for part in _WEIGHTS:
        for path in _weight_files(folder, part):
            if not path.is_file():
                yield str(path.relative_to(folder))


def _missing_original(folder: Path) -> Iterator[str]:
    for name in (VAE_FILE, TEXT_ENCODER_FILE, f"{_TOKENIZER}/tokenizer_config.json"):
        if not (folder / name).is_file():
            yield name
    names = {path.name for path in folder.glob("*.safetensors")}
    if not names:
        yield "*.safetensors"
    for name in sorted(names):
        shard = re.fullmatch(r"(.+)-00001-of-(\d{5})\.safetensors", name)
        numbers = range(1, int(shard[2]) + 1) if shard else ()
        yield from sorted({f"{shard[1]}-{n:05d}-of-{shard[2]}.safetensors" for n in numbers} - names)


def _weight_files(folder: Path, part: str) -> list[Path]:
    """Weight files of one part of diffusers' layout: those its index names, or the only one."""
    single = folder / part / f"{_WEIGHTS[part]}.safetensors"
    index = single.with_name(f"{single.name}.index.json")
    if single.is_file() or not index.is_file():
        return [single]
    return indexed_files(index)


def read_defaults(folder: Path) -> dict[str, Any]:
    """Return the settings that a folder says suit its model."""
    path = folder / DEFAULTS_FILE
    like = {**VideoSettings().as_dict(), **OFFICIAL_DEFAULTS, "reuse_coefficients": [0.0]}
    return read_config(path, like) if path.is_file() else {}


def load_folder(folder: Path, layout: str, dtype: torch.dtype) -> Components:
    """Read the weights of a folder that ``check_folder`` accepts.

    Raises:
        ValueError: a file of PyTorch's older format is damaged, or a tensor in it unknown, missing or
            misshapen.
    """
    return _load_diffusers(folder, dtype) if layout == "diffusers" else _load_original(folder, dtype)


def _load_diffusers(folder: Path, dtype: torch.dtype) -> Components:
    return Components(
        tokenizer=load_tokenizer(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        transformer=SkyReelsV2Transformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        scheduler=_load_scheduler(folder),
    )


def _load_original(folder: Path, dtype: torch.dtype) -> Components:
    return Components(
        tokenizer=load_tokenizer(folder / _TOKENIZER),
        scheduler=UniPCMultistepScheduler(**FLOW_SCHEDULER),
        **load_original_models(folder, dtype),
    )


def _load_scheduler(folder: Path) -> UniPCMultistepScheduler:
    path = folder / "scheduler" / "scheduler_config.json"
    read_config(path, default_arguments(UniPCMultistepScheduler))
    with reading(path, "a configuration"):
        return UniPCMultistepScheduler.from_pretrained(path.parent)


def _new_model(folder: Path, part: str) -> nn.Module:
    """A part of diffusers' layout on the meta device."""
    kind, path = _MODELS[part], folder / part / "config.json"
    is_diffusers = hasattr(kind, "load_config")
    # transformers checks most types by itself
    content = read_config(path, default_arguments(kind) if is_diffusers else {"model_type": ""})
    with reading(path, "a configuration"), torch.device("meta"):
        if is_diffusers:
            return kind.from_config(content)
        return kind(kind.config_class.from_pretrained(path.parent, local_files_only=True))


def _check_tensors(folder: Path, part: str, model: nn.Module) -> None:
    """Compare names and shapes before loading; ``from_pretrained`` lets some misfits pass."""
    check = TensorCheck(model)
    for path in _weight_files(folder, part):
        for key, shape in read_header(path).items():
            check.accept(key, shape, key, path)
    check.finish(folder / part)


def _check_fit(configs: dict[str, Any], folder: Path) -> None:
    """Refuse parts that do not fit together or are of other sizes than all SkyReels-V2 models."""
    transformer, vae = configs["transformer"], configs["vae"]
    patch = 1 if vae.patch_size is None else vae.patch_size
    if not isinstance(patch, int) or patch < 1:
        raise ValueError(f"{folder}: vae, patch_size: expected a whole number of at least 1, got {patch!r}.")
    colours = 3 * patch**2
    for name, found, wanted in (
        ("transformer, text_dim", transformer.text_dim, configs["text_encoder"].d_model),
        ("transformer, in_channels", transformer.in_channels, vae.z_dim),
        ("transformer, out_channels", transformer.out_channels, vae.z_dim),
        ("transformer, patch_size", tuple(transformer.patch_size), (1, 2, 2)),
        ("vae, number of latents_mean", len(vae.latents_mean), vae.z_dim),
        ("vae, number of latents_std", len(vae.latents_std), vae.z_dim),
        ("vae, in_channels", vae.in_channels, colours),
        ("vae, out_channels", vae.out_channels, colours),
        ("vae, scale_factor_temporal", vae.scale_factor_temporal, 4),
        ("vae, scale_factor_spatial", vae.scale_factor_spatial, 8),
    ):
        if found != wanted:
            raise ValueError(
                f"{folder}: {name}: expected {wanted}, as the other parts need it, got {found}; "
                "take all parts from the same model."
            )
