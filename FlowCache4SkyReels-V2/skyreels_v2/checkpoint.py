"""Finds and loads SkyReels-V2 checkpoints: in diffusers' layout, in the original one, and the small one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from flowcache import FlowCacheConfig
from flowcache.finite import check_finite_weights
from flowcache.reuse.plans import planned_steps

from .conversion import (
    TEXT_ENCODER_FILE,
    VAE_FILE,
    TensorCheck,
    load_original_text_encoder,
    load_original_transformer,
    load_original_vae,
    read_header,
    read_json,
    transformer_config,
)
from .methods import method_config
from .pipeline import FlowCacheSkyReelsV2Pipeline
from .settings import DEFAULTS_FILE, OFFICIAL_DEFAULTS, RESOLUTIONS, VideoSettings

logger = logging.getLogger(__name__)

OFFICIAL_DEFAULT = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
OFFICIAL = tuple(f"Skywork/SkyReels-V2-DF-{name}" for name in ("1.3B-540P", "14B-540P", "14B-720P"))
SMALL = Path(__file__).resolve().parents[2] / "assets" / "skyreels_v2_small"

#: Width and number of layers of the official models.
FAMILIES = {(1536, 30): "1.3B", (5120, 40): "14B"}

#: Scheduler of the original layout, which holds none; the shift is that of text-to-video.
FLOW_SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 8.0}

# Parts of diffusers' layout that hold weights, and how their weight files are called.
_WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_TOKENIZER = "google/umt5-xxl"
# Pipelines whose weights are of the same form, but were not trained for diffusion forcing.
_OTHER_PIPELINES = ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")

_PATTERNS = {
    "diffusers": [
        "model_index.json",
        DEFAULTS_FILE,
        "scheduler/*.json",
        "tokenizer/*",
        *(f"{part}/*.{suffix}" for part in _WEIGHTS for suffix in ("json", "safetensors")),
    ],
    "original": ["*.json", "*.safetensors", VAE_FILE, TEXT_ENCODER_FILE, f"{_TOKENIZER}/*"],
}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; decided before any weight is read.

    Attributes:
        model_id: as the user gave it; ``location`` says what it stands for.
        path: local folder; None for a Hub id.
        layout: ``diffusers`` or ``original``.
        family: ``1.3B``, ``14B`` or ``small``, which tells the fitted polynomials; None if unknown.
        reason: one sentence that says which model and why.
    """

    model_id: str
    path: Path | None
    layout: str
    family: str | None
    reason: str

    @property
    def location(self) -> str:
        """The folder or the Hub id that is loaded, which ``model_id`` may leave open."""
        return str(self.path or (OFFICIAL_DEFAULT if self.model_id == "auto" else self.model_id))

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings that suit this model: those of ``defaults.json`` in its folder over the official ones."""
        size = RESOLUTIONS["720P" if "720P" in self.location else "540P"]
        own = _read_defaults(self.path) if self.path else {}
        return {**OFFICIAL_DEFAULTS, "height": size[0], "width": size[1], **own}

    def video_settings(self, **given: Any) -> VideoSettings:
        """What suits this model, with the given fields over it; None leaves a field as it suits.

        Raises:
            ValueError: a setting is out of range; one sentence that names it.
        """
        wanted = {**self.defaults, **{name: value for name, value in given.items() if value is not None}}
        fields = {name: value for name, value in wanted.items() if name in VideoSettings.__dataclass_fields__}
        return VideoSettings(**fields)

    def method_config(
        self, method: str = "flowcache", preset: str = "fast", **changes: Any
    ) -> FlowCacheConfig:
        """``methods.method_config`` with the polynomial that was fitted for this model."""
        fitted = {"family": self.family, "coefficients": self.defaults.get("reuse_coefficients")}
        return method_config(method, preset, **{**fitted, **changes})

    def planned_steps(self, video: VideoSettings, share: float) -> tuple[int, ...]:
        """The steps to compute, by the plan beside the weights whose share of them is nearest.

        Raises:
            ValueError: there are no plans for this model and this sampling.
        """
        return planned_steps(self.path, video.sampling, share)


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


def resolve_model(model_id: str = "auto", device: torch.device | str | None = None) -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    Args:
        model_id: ``auto`` (the official 1.3B on CUDA, else the small one), ``small``, a folder in diffusers'
            or the original layout, or the Hub id of an official diffusion-forcing model in either layout.
        device: where it is to run; only ``auto`` looks at it. None takes CUDA if it is there.

    Raises:
        ValueError: one sentence that names ``model_id`` and what it may be, or what a folder lacks.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if model_id == "auto" and torch.device(device).type == "cuda":
        return _hub_source(model_id, OFFICIAL_DEFAULT, f"CUDA device: using the official {OFFICIAL_DEFAULT}")
    if model_id == "auto":
        return _small_source(model_id, "no CUDA device: using the small checkpoint shipped in assets/")
    if model_id == "small":
        return _small_source(model_id, "asked for small: using the small checkpoint shipped in assets/")
    folder = _existing_folder(model_id)
    if folder is not None:
        return _folder_source(model_id, folder)
    if model_id.removesuffix("-Diffusers") in OFFICIAL:
        return _hub_source(model_id, model_id, f"Hub id: using the official {model_id}")
    raise ValueError(
        f"model_id must be auto, small, an existing folder, or one of {', '.join(OFFICIAL)} "
        f"(each also with -Diffusers), got {model_id!r}."
    )


def load_components(source: ModelSource, dtype: torch.dtype = torch.float32) -> Components:
    """Read a model's weights, all of them strictly; downloads them first for a Hub id.

    Args:
        source: what ``resolve_model`` returned.
        dtype: of text encoder and transformer, bf16 on CUDA; the VAE and what diffusers keeps in fp32 are
            always in fp32.

    Raises:
        ValueError: a file is missing or corrupt, or a tensor is unknown, missing or misshapen; it is named.
        OSError: the download failed.
    """
    logger.info("model: %s", source.reason)
    folder = source.path or _download(source)
    load = _load_diffusers if source.layout == "diffusers" else _load_original
    components = load(folder, dtype)
    _check_fit(components, folder)
    return components


def load_pipeline(
    source: ModelSource | str = "auto", device: torch.device | str | None = None, offload: bool = False
) -> FlowCacheSkyReelsV2Pipeline:
    """Load a model as a pipeline: bf16 on CUDA, fp32 elsewhere; see ``load_components``.

    Args:
        source: what ``resolve_model`` returned, or what it takes.
        device: where to run; None takes CUDA if it is there.
        offload: keep every component in host memory while it does not work.

    Raises:
        ValueError: see ``resolve_model`` and ``load_components``.
        NotFiniteError: a weight holds NaN or infinity; it is named.
        OSError: the download failed.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(source, str):
        source = resolve_model(source, device)
    parts = load_components(source, torch.bfloat16 if device.type == "cuda" else torch.float32)
    pipeline = FlowCacheSkyReelsV2Pipeline(**vars(parts))
    pipeline.model_defaults = source.defaults
    pipeline.default_negative_prompt = source.defaults["negative_prompt"]
    if offload:
        pipeline.enable_stage_offload(device)
    else:
        pipeline.to(device)
    check_finite_weights(pipeline.components)
    return pipeline


def _hub_source(model_id: str, repository: str, reason: str) -> ModelSource:
    layout = "diffusers" if repository.endswith("-Diffusers") else "original"
    family = next(family for family in FAMILIES.values() if f"-{family}-" in repository)
    return ModelSource(model_id, None, layout, family, reason)


def _small_source(model_id: str, reason: str) -> ModelSource:
    if not SMALL.is_dir():
        raise ValueError(
            f"model_id {model_id} needs the small checkpoint, but there is no folder {SMALL}; "
            "get the whole repository, or give a folder or a Hub id."
        )
    layout = _layout(SMALL)
    _check_complete(SMALL, layout)
    return ModelSource(model_id, SMALL, layout, "small", reason)


def _existing_folder(model_id: str) -> Path | None:
    try:
        folder = Path(model_id).expanduser()
        return folder if model_id and folder.is_dir() else None
    except (OSError, RuntimeError):  # longer than a path may be, or of a user who does not exist
        return None


def _folder_source(model_id: str, folder: Path) -> ModelSource:
    layout = _layout(folder)
    _check_complete(folder, layout)
    config = _transformer_config(folder, layout)
    width = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
    small = SMALL.is_dir() and folder.samefile(SMALL)
    family = "small" if small else FAMILIES.get((width, config.get("num_layers")))
    reason = f"local folder: using {folder} in the {layout} layout"
    return ModelSource(model_id, folder, layout, family, reason)


def _layout(folder: Path) -> str:
    for name, layout in (("model_index.json", "diffusers"), ("config.json", "original")):
        if (folder / name).is_file():
            return layout
    raise ValueError(
        f"model_id names {folder}, which holds neither model_index.json (diffusers' layout) "
        "nor config.json (the original layout)."
    )


def _transformer_config(folder: Path, layout: str) -> dict[str, Any]:
    """Configuration of the transformer in diffusers' terms; refuses models of another kind."""
    if layout == "original":
        return transformer_config(read_json(folder / "config.json"))
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    config = read_json(folder / "transformer" / "config.json")
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
    return config


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
    return sorted({single.with_name(name) for name in read_json(index).get("weight_map", {}).values()})


def _download(source: ModelSource) -> Path:
    """Fetch the files that are needed, or find them in the Hub's cache (``HF_HOME``)."""
    try:
        folder = Path(snapshot_download(source.location, allow_patterns=_PATTERNS[source.layout]))
    except Exception as error:
        raise OSError(
            f"{source.location} could not be downloaded ({type(error).__name__}); "
            "check the connection, or give a local folder or 'small' as model_id."
        ) from error
    _check_complete(folder, source.layout)
    return folder


def _read_defaults(folder: Path) -> dict[str, Any]:
    path = folder / DEFAULTS_FILE
    return read_json(path) if path.is_file() else {}


def _load_diffusers(folder: Path, dtype: torch.dtype) -> Components:
    for part, kind in (
        ("transformer", SkyReelsV2Transformer3DModel),
        ("vae", AutoencoderKLWan),
        ("text_encoder", UMT5EncoderModel),
    ):
        _check_tensors(folder, part, kind)
    return Components(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        transformer=SkyReelsV2Transformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        scheduler=UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
    )


def _check_tensors(folder: Path, part: str, kind: type[nn.Module]) -> None:
    """Compare names and shapes before loading; ``from_pretrained`` lets some misfits pass."""
    with torch.device("meta"):
        if hasattr(kind, "load_config"):  # diffusers
            model = kind.from_config(kind.load_config(folder / part, local_files_only=True))
        else:
            model = kind(kind.config_class.from_pretrained(folder / part, local_files_only=True))
    check = TensorCheck(model)
    for path in _weight_files(folder, part):
        for key, shape, dtype in read_header(path):
            check.accept(key, shape, dtype, key, path)
    check.finish(folder / part)


def _load_original(folder: Path, dtype: torch.dtype) -> Components:
    return Components(
        tokenizer=AutoTokenizer.from_pretrained(folder / _TOKENIZER, local_files_only=True),
        text_encoder=load_original_text_encoder(folder / TEXT_ENCODER_FILE, dtype),
        transformer=load_original_transformer(folder, dtype),
        vae=load_original_vae(folder / VAE_FILE),
        scheduler=UniPCMultistepScheduler(**FLOW_SCHEDULER),
    )


def _check_fit(parts: Components, folder: Path) -> None:
    """Text encoder and VAE must speak in the widths that the transformer reads."""
    wanted = parts.transformer.config
    for name, part, width in (
        ("text_dim", "text encoder", parts.text_encoder.config.d_model),
        ("in_channels", "VAE", parts.vae.config.z_dim),
    ):
        if wanted[name] != width:
            raise ValueError(
                f"The parts of {folder} do not fit: the {part} has width {width}, "
                f"the transformer {name} {wanted[name]}."
            )
