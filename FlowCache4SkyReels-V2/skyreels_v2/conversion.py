"""Names and sizes of the original SkyReels-V2 checkpoints, translated to diffusers and transformers.

Tensors are renamed, never reshaped. The transformer's names are tested against the published ones; those of
the text encoder and the VAE only against ``UMT5EncoderModel`` and ``AutoencoderKLWan``, not the real files.
"""

from __future__ import annotations

import re
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

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

#: Arguments of the VAE beside diffusers' defaults, which are the sizes of Wan 2.1.
WAN_VAE: dict[str, Any] = {}

#: The original configuration, with the sizes of the 1.3B model.
ORIGINAL_CONFIG: dict[str, Any] = {
    "model_type": "t2v",
    "patch_size": [1, 2, 2],
    "dim": 1536,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "text_dim": 4096,
    "in_dim": 16,
    "out_dim": 16,
    "num_heads": 12,
    "num_layers": 30,
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "inject_sample_info": False,
}

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

# Names within a block. The original's norm3 stands before the cross attention.
_BLOCK_STEMS = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{old}.{part}": f"{new}.{name}"
        for old, new in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, name in zip(
            ("q", "k", "v", "o", "norm_q", "norm_k"),
            ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"),
            strict=True,
        )
    },
}

_T5_STEMS = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}

_T5_BLOCK_STEMS = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{p}": f"layer.0.SelfAttention.{p}" for p in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def transformer_key(original: str) -> str | None:
    """Translate the name of a transformer tensor to diffusers'; None if it is unknown."""
    return _rename(original, _TRANSFORMER_STEMS, _BLOCK_STEMS, "blocks")


def text_encoder_key(original: str) -> str | None:
    """Translate Wan's name of a umT5 tensor to transformers'; None if it is unknown."""
    return _rename(original, _T5_STEMS, _T5_BLOCK_STEMS, "encoder.block")


def vae_key(original: str) -> str:
    """Translate the name of a Wan VAE tensor by diffusers' own converter; unknown names stay."""
    return next(iter(convert_wan_vae_to_diffusers({original: None})))


def transformer_config(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``SkyReelsV2Transformer3DModel`` from the original ``config.json``.

    Raises:
        ValueError: the configuration is of another kind of model, or lacks a size.
    """
    original = {**ORIGINAL_CONFIG, **given}
    if (kind := original["model_type"]) != "t2v":
        raise ValueError(f"model_id names a {kind} model; only diffusion-forcing (DF) models are supported.")
    missing = [key for key in ("dim", "ffn_dim", "num_heads", "num_layers") if key not in given]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}.")
    for key, supported in (("qk_norm", True), ("window_size", [-1, -1])):
        if original[key] != supported:
            raise ValueError(f"config.json: {key}: expected {supported}, got {original[key]}.")
    if original["num_heads"] < 1:
        raise ValueError(f"config.json: num_heads: expected at least 1, got {original['num_heads']}.")
    same = ("text_dim", "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "inject_sample_info")
    return {
        "patch_size": tuple(original["patch_size"]),
        "num_attention_heads": original["num_heads"],
        "attention_head_dim": original["dim"] // original["num_heads"],
        "in_channels": original["in_dim"],
        "out_channels": original["out_dim"],
        **{key: original[key] for key in same},
    }


def _rename(original: str, stems: dict[str, str], block_stems: dict[str, str], blocks: str) -> str | None:
    """Replace the part of a name before ``.weight`` or ``.bias``; ``blocks.N.`` uses ``block_stems``."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", original)
    prefix, inner = (f"{blocks}.{block[1]}.", block[2]) if block else ("", original)
    stems = block_stems if block else stems
    if inner in stems:
        return prefix + stems[inner]
    stem, _, leaf = inner.rpartition(".")
    return f"{prefix}{stems[stem]}.{leaf}" if leaf in ("weight", "bias") and stem in stems else None
