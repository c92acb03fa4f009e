"""The original layout of a SkyReels-V2 checkpoint, read into modules of diffusers and transformers.

Names change and nothing else: no tensor is reshaped, and every one must have its place. The names of the
transformer are held to the published ones of the 1.3B and the 14B model. Those of the text encoder and of
the VAE are held to what ``UMT5EncoderModel`` and ``AutoencoderKLWan`` expect, not to the real files.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from flowcache.weights import check_float

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"

#: Sizes of the text encoder; its file holds no configuration.
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}

#: Where the VAE differs from diffusers' defaults, which are the sizes of Wan 2.1.
WAN_VAE: dict[str, Any] = {}

# Names outside the blocks.
_TRANSFORMER_STEMS = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "fps_projection.0": "fps_projection.net.0.proj",
    "fps_projection.2": "fps_projection.net.2",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
    "patch_embedding": "patch_embedding",
    "fps_embedding": "fps_embedding",
}

# Names within a block. What the original calls norm3 stands before the cross attention.
_BLOCK_STEMS = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{theirs}.{part}": f"{ours}.{name}"
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, name in {
            "q": "to_q",
            "k": "to_k",
            "v": "to_v",
            "o": "to_out.0",
            "norm_q": "norm_q",
            "norm_k": "norm_k",
        }.items()
    },
}

_T5_STEMS = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}

_T5_BLOCK_STEMS = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def transformer_key(original: str) -> str | None:
    """Diffusers' name of a transformer tensor, or None if the original has no such tensor."""
    return _rename(original, _TRANSFORMER_STEMS, _BLOCK_STEMS, "blocks")


def text_encoder_key(original: str) -> str | None:
    """Transformers' name of a tensor of the umT5 encoder as Wan stores it, or None if there is none."""
    return _rename(original, _T5_STEMS, _T5_BLOCK_STEMS, "encoder.block")


def vae_key(original: str) -> str:
    """Diffusers' name of a tensor of the Wan VAE, by diffusers' own converter; unknown names stay."""
    return next(iter(convert_wan_vae_to_diffusers({original: None})))


def transformer_config(original: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``SkyReelsV2Transformer3DModel`` from the original ``config.json``.

    Raises:
        ValueError: the configuration is of another kind of model, or lacks a size.
    """
    kind = original.get("model_type", "t2v")
    if kind != "t2v":
        raise ValueError(f"model_id names a {kind} model; only diffusion-forcing (DF) models are supported.")
    missing = [key for key in ("dim", "ffn_dim", "num_heads", "num_layers") if key not in original]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}, which a SkyReels-V2 model has.")
    if not original.get("qk_norm", True):
        raise ValueError("config.json has qk_norm off, which diffusers' SkyReels-V2 does not know.")
    if tuple(original.get("window_size", (-1, -1))) != (-1, -1):
        raise ValueError(f"config.json has window_size {original['window_size']}, but only [-1, -1] works.")
    return {
        "patch_size": tuple(original.get("patch_size", (1, 2, 2))),
        "num_attention_heads": original["num_heads"],
        "attention_head_dim": original["dim"] // original["num_heads"],
        "in_channels": original.get("in_dim", 16),
        "out_channels": original.get("out_dim", 16),
        "text_dim": original.get("text_dim", 4096),
        "freq_dim": original.get("freq_dim", 256),
        "ffn_dim": original["ffn_dim"],
        "num_layers": original["num_layers"],
        "cross_attn_norm": original.get("cross_attn_norm", True),
        "eps": original.get("eps", 1e-6),
        "inject_sample_info": original.get("inject_sample_info", False),
    }


class TensorCheck:
    """Holds the tensors of a checkpoint to the names and the shapes that a model has."""

    def __init__(self, model: nn.Module) -> None:
        self._shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        # Transformers lists tied weights by name; older versions without the name of the other one.
        tied = getattr(model, "_tied_weights_keys", None) or {}
        self._optional = set(tied) | set(tied.values() if isinstance(tied, dict) else ())
        self._found: dict[str, Path] = {}

    def accept(
        self, key: str | None, shape: tuple[int, ...], dtype: torch.dtype | str, stored_as: str, path: Path
    ) -> None:
        """Note one tensor.

        Raises:
            ValueError: the model has no ``key``, or of another shape, or it was there before, or it holds
                integers; the sentence names the tensor as it is stored, and the file.
        """
        if key not in self._shapes:
            raise ValueError(f"{path} holds {stored_as}, which the model does not have.")
        if key in self._found:
            raise ValueError(f"{path} holds {stored_as}, which {self._found[key].name} holds, too.")
        if shape != self._shapes[key]:
            raise ValueError(f"{path} holds {stored_as} with shape {shape}, not {self._shapes[key]}.")
        check_float(path, stored_as, dtype)
        self._found[key] = path

    def finish(self, path: Path) -> None:
        """Look for what did not come.

        Raises:
            ValueError: a tensor of the model is not in ``path``; the sentence names the first such.
        """
        missing = sorted(self._shapes.keys() - self._found.keys())
        if self._optional & self._found.keys():
            missing = [key for key in missing if key not in self._optional]
        if missing:
            others = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(f"{path} lacks {missing[0]}{others} (as the converted model names it).")


def load_original_transformer(folder: Path, dtype: torch.dtype) -> SkyReelsV2Transformer3DModel:
    """Transformer from ``config.json`` and the safetensors files beside it, shard by shard.

    Tensors become ``dtype``, or fp32 where diffusers keeps them so (time embedding, modulation, norms).

    Raises:
        ValueError: a file is unreadable, or a tensor is unknown, missing or misshapen; both are named.
    """
    config = transformer_config(read_json(folder / "config.json"))
    with torch.device("meta"):
        model = SkyReelsV2Transformer3DModel(**config)
    keep = set(model._keep_in_fp32_modules)

    def dtype_of(key: str) -> torch.dtype:
        return torch.float32 if keep.intersection(key.split(".")) else dtype

    shards = sorted(folder.glob("*.safetensors"))
    stored = ((key, tensor, path) for path in shards for key, tensor in _read_safetensors(path))
    _fill(model, stored, transformer_key, dtype_of, folder)
    # The rotary tables are part of no checkpoint, so they are still without content.
    rope = model.rope
    model.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    return model.eval()


def load_original_text_encoder(path: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """umT5-xxl encoder from Wan's ``.pth`` file.

    Raises:
        ValueError: the file is unreadable, or a tensor is unknown, missing or misshapen; both are named.
    """
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**UMT5_XXL))
    stored = ((key, tensor, path) for key, tensor in _read_pth(path))
    _fill(model, stored, text_encoder_key, lambda key: dtype, path)
    model.tie_weights()
    return model.eval()


def load_original_vae(path: Path) -> AutoencoderKLWan:
    """Wan 2.1 VAE in fp32 from Wan's ``.pth`` file.

    Raises:
        ValueError: the file is unreadable, or a tensor is unknown, missing or misshapen; both are named.
    """
    with torch.device("meta"):
        model = AutoencoderKLWan(**WAN_VAE)
    stored = ((key, tensor, path) for key, tensor in _read_pth(path))
    _fill(model, stored, vae_key, lambda key: torch.float32, path)
    return model.eval()


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        ValueError: it holds something else; the sentence names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return content


def read_header(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and types in a safetensors file; only its header is read.

    Raises:
        ValueError: the file is corrupt or cut short.
    """
    with _open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            part = file.get_slice(key)
            yield key, tuple(part.get_shape()), part.get_dtype()


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with _open_safetensors(path) as file:
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            yield key, file.get_tensor(key)


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt or cut short ({error}).") from error


def _read_pth(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files of the older format cannot be mapped into memory.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise ValueError(
            f"{path} is corrupt, cut short or no PyTorch checkpoint ({type(error).__name__})."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} must hold tensors by name.")
    yield from content.items()


def _fill(
    model: nn.Module,
    stored: Iterator[tuple[str, Tensor, Path]],
    rename: Callable[[str], str | None],
    dtype_of: Callable[[str], torch.dtype],
    where: Path,
) -> None:
    """Put stored tensors, renamed and in their type, in the place of those of a model on the meta device."""
    check, weights = TensorCheck(model), {}
    for original, tensor, path in stored:
        key = rename(original)
        check.accept(key, tuple(tensor.shape), tensor.dtype, original, path)
        weights[key] = tensor.to(dtype_of(key))
    check.finish(where)
    # The check was strict; what may still be absent is one of two tied names.
    model.load_state_dict(weights, strict=False, assign=True)


def _rename(original: str, stems: dict[str, str], block_stems: dict[str, str], blocks: str) -> str | None:
    """New name of a key, whose stem is in ``block_stems`` behind ``blocks.N.`` and in ``stems`` elsewhere."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", original)
    if block is None:
        return _replace_stem(original, stems)
    inner = _replace_stem(block[2], block_stems)
    return inner and f"{blocks}.{block[1]}.{inner}"


def _replace_stem(key: str, stems: dict[str, str]) -> str | None:
    """Replace the part of a key before ``.weight`` or ``.bias`` (or all of it) by its counterpart."""
    stem, dot, leaf = key.rpartition(".")
    if key in stems:
        return stems[key]
    if leaf in ("weight", "bias") and stem in stems:
        return stems[stem] + dot + leaf
    return None
