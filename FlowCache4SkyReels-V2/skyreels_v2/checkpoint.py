"""Finds and loads SkyReels-V2 checkpoints: diffusers' layout, the original one and the small one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from .conversion import UMT5_XXL, text_encoder_key, transformer_config, transformer_key
from .pipeline import FlowCacheSkyReelsV2Pipeline

logger = logging.getLogger(__name__)

OFFICIAL_DEFAULT = "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"
OFFICIAL = tuple(f"Skywork/SkyReels-V2-DF-{name}" for name in ("1.3B-540P", "14B-540P", "14B-720P"))
SMALL = Path(__file__).resolve().parents[2] / "assets" / "skyreels_v2_small"

_DIFFUSERS_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
_VAE_FILE, _T5_FILE, _TOKENIZER = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; decided before any weight is read.

    Attributes:
        model_id: Hub id or folder.
        folder: local folder; None for a Hub id that is not downloaded yet.
        layout: ``diffusers`` or ``original``.
        family: ``1.3B``, ``14B`` or ``small``, which tells the fitted polynomials; None if unknown.
        reason: one sentence that says which model and why.
    """

    model_id: str
    folder: Path | None
    layout: str
    family: str | None
    reason: str

    @property
    def defaults(self) -> dict[str, Any]:
        """Settings that suit this model, from ``defaults.json`` in its folder; empty without one."""
        path = self.folder / "defaults.json" if self.folder else None
        return json.loads(path.read_text()) if path and path.is_file() else {}


def resolve_model(model_id: str = "auto", device: torch.device | str = "cpu") -> ModelSource:
    """Decide which model to load; reads no weights and opens no connection.

    Args:
        model_id: ``auto`` (the official 1.3B on CUDA, else the small one), ``small``, a folder in diffusers'
            or the original layout, or the Hub id of an official diffusion-forcing model in either layout.
        device: where it is to run; only ``auto`` looks at it.

    Raises:
        ValueError: one sentence that names ``model_id`` and what it may be, or what a folder lacks.
    """
    if model_id == "auto":
        if torch.device(device).type == "cuda":
            return _hub_source(OFFICIAL_DEFAULT, "a CUDA device is there: the official 1.3B model")
        return _folder_source(SMALL, "no CUDA device: the small checkpoint that comes with the project")
    if model_id == "small":
        return _folder_source(SMALL, "the small checkpoint that comes with the project")
    if Path(model_id).is_dir():
        return _folder_source(Path(model_id), "a local folder")
    if model_id.removesuffix("-Diffusers") in OFFICIAL:
        return _hub_source(model_id, "an official model")
    raise ValueError(
        f"model_id must be auto, small, an existing folder, or one of {', '.join(OFFICIAL)} "
        f"(each also with -Diffusers), got {model_id!r}."
    )


def load_pipeline(
    source: ModelSource | str = "auto", device: torch.device | str | None = None, offload: bool = False
) -> FlowCacheSkyReelsV2Pipeline:
    """Load a model as a pipeline.

    On CUDA, transformer and text encoder run in bf16 (with the parts that diffusers keeps in fp32), the VAE
    in fp32; on the CPU all runs in fp32.

    Args:
        source: what ``resolve_model`` returned, or what it takes.
        device: where to run; None takes CUDA if it is there.
        offload: keep every component in host memory while it does not work.

    Raises:
        ValueError: see ``resolve_model``; or a file is corrupt or its keys are not those of the model.
        OSError: a download failed.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(source, str):
        source = resolve_model(source, device)
    folder = source.folder or _download(source)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    load = _load_diffusers if source.layout == "diffusers" else _load_original
    pipeline = FlowCacheSkyReelsV2Pipeline(**load(folder, dtype))
    if offload:
        pipeline.enable_stage_offload(device)
        return pipeline
    return pipeline.to(device)


def _hub_source(model_id: str, reason: str) -> ModelSource:
    layout = "diffusers" if model_id.endswith("-Diffusers") else "original"
    return ModelSource(model_id, None, layout, _family(model_id), f"{model_id} ({reason})")


def _folder_source(folder: Path, reason: str) -> ModelSource:
    if (folder / "model_index.json").is_file():
        layout, needed = "diffusers", _DIFFUSERS_PARTS
    elif (folder / "config.json").is_file():
        layout, needed = "original", (_VAE_FILE, _T5_FILE, _TOKENIZER)
    else:
        raise ValueError(
            f"model_id names {folder}, which holds neither model_index.json (diffusers' layout) "
            "nor config.json (the original layout)."
        )
    missing = [part for part in needed if not (folder / part).exists()]
    if missing:
        raise ValueError(f"model_id names {folder}, which lacks {', '.join(missing)}.")
    family = "small" if folder == SMALL else _family(folder.name)
    return ModelSource(str(folder), folder, layout, family, f"{folder} ({reason})")


def _family(name: str) -> str | None:
    return next((family for family in ("1.3B", "14B") if family in name), None)


def _download(source: ModelSource) -> Path:
    """Fetch the files that are needed, or find them in the Hub's cache."""
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", _VAE_FILE, _T5_FILE, f"{_TOKENIZER}/*"]
    try:
        return Path(snapshot_download(source.model_id, allow_patterns=patterns))
    except Exception as error:
        raise OSError(
            f"{source.model_id} could not be downloaded ({type(error).__name__}); "
            "check the connection, or give a local folder as model_id."
        ) from error


def _load_diffusers(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder": _strict(UMT5EncoderModel, folder / "text_encoder", dtype=dtype),
        "transformer": _strict(SkyReelsV2Transformer3DModel, folder / "transformer", torch_dtype=dtype),
        "vae": _strict(AutoencoderKLWan, folder / "vae", torch_dtype=torch.float32),
        "scheduler": UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
    }


def _strict(kind: type, folder: Path, **options: Any) -> nn.Module:
    """``from_pretrained`` that takes no missing, left-over or misshapen tensor for granted."""
    try:
        module, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be read as {kind.__name__}: {_first_line(error)}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(str, info.get(problem) or ()))
        # the encoder's embedding is stored once and tied
        keys = [key for key in keys if key != "encoder.embed_tokens.weight"]
        if keys:
            raise ValueError(f"{folder} does not fit {kind.__name__}: {problem.replace('_', ' ')} {', '.join(keys[:3])}.")
    return module.eval()


def _load_original(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    logger.info("converting the original layout of %s", folder)
    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder / _TOKENIZER),
        "text_encoder": load_original_text_encoder(folder / _T5_FILE, dtype),
        "transformer": load_original_transformer(folder, dtype),
        "vae": AutoencoderKLWan.from_single_file(str(folder / _VAE_FILE), torch_dtype=torch.float32).eval(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0, num_train_timesteps=1000
        ),
    }


def load_original_transformer(folder: Path, dtype: torch.dtype) -> SkyReelsV2Transformer3DModel:
    """Transformer from ``config.json`` and the safetensors beside it, shard by shard.

    Raises:
        ValueError: a file is unreadable, or a key is unknown, missing or of the wrong shape; it is named.
    """
    config = transformer_config(json.loads((folder / "config.json").read_text()))
    with torch.device("meta"):
        model = SkyReelsV2Transformer3DModel(**config)
    weights = _convert(_shards(folder), transformer_key, model)
    keep = tuple(SkyReelsV2Transformer3DModel._keep_in_fp32_modules)
    for name, tensor in weights.items():
        in_fp32 = any(part in keep for part in name.split("."))
        weights[name] = tensor.to(torch.float32 if in_fp32 else dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    # the rotary tables are no part of a checkpoint, so they are still without content
    rope = SkyReelsV2Transformer3DModel(**{**config, "num_layers": 0, "text_dim": 1, "ffn_dim": 1}).rope
    model.rope = rope
    return model.eval()


def load_original_text_encoder(path: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """umT5 encoder from Wan's ``.pth`` file. The mapping was never tried on the real file.

    Raises:
        ValueError: the file is unreadable, or a key is unknown, missing or of the wrong shape; it is named.
    """
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {_first_line(error)}") from error
    weights = _convert(((key, tensor, path) for key, tensor in stored.items()), text_encoder_key, model)
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def _shards(folder: Path) -> Iterator[tuple[str, Tensor, Path]]:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} holds no safetensors file.")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield key, shard.get_tensor(key), path
        except SafetensorError as error:
            raise ValueError(f"{path} is corrupt or cut short: {_first_line(error)}") from error


def _convert(
    stored: Iterator[tuple[str, Tensor, Path]], rename: Callable[[str], str | None], model: nn.Module
) -> dict[str, Tensor]:
    """Rename tensors to a model's keys; every key and shape must fit."""
    expected = {key: tensor.shape for key, tensor in model.state_dict().items() if key != "encoder.embed_tokens.weight"}
    weights: dict[str, Tensor] = {}
    for original, tensor, path in stored:
        key = rename(original)
        if key not in expected:
            raise ValueError(f"{path} holds {original}, which the model does not have.")
        if tensor.shape != expected[key]:
            raise ValueError(f"{path}: {original} has shape {tuple(tensor.shape)}, not {tuple(expected[key])}.")
        weights[key] = tensor
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise ValueError(f"The checkpoint lacks {missing[0]}" + (f" and {len(missing) - 1} more." if missing[1:] else "."))
    return weights


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
