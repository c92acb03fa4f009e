"""Names and sizes of the original SkyReels-V2 checkpoints, in the terms of diffusers and transformers."""

from __future__ import annotations

import re
from typing import Any

# Beginnings of key names outside the blocks.
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

# Beginnings within a block. What the original calls norm3 stands before the cross attention.
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

UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}


def transformer_key(original: str) -> str | None:
    """Diffusers' name of a transformer tensor, or None if the original has no such tensor."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", original)
    if block is None:
        return _replace_stem(original, _TRANSFORMER_STEMS)
    inner = _replace_stem(block[2], _BLOCK_STEMS)
    return inner and f"blocks.{block[1]}.{inner}"


def text_encoder_key(original: str) -> str | None:
    """Transformers' name of a tensor of the umT5 encoder as Wan stores it, or None if there is none.

    Checked against the names and the sizes that ``UMT5EncoderModel`` has, not against the real file.
    """
    if original == "token_embedding.weight":
        return "shared.weight"
    if original == "norm.weight":
        return "encoder.final_layer_norm.weight"
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", original)
    inner = block and _replace_stem(block[2], _T5_BLOCK_STEMS)
    return inner and f"encoder.block.{block[1]}.{inner}"


def transformer_config(original: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``SkyReelsV2Transformer3DModel`` from the original ``config.json``.

    Raises:
        ValueError: the configuration is of another kind of model, or lacks a size.
    """
    if original.get("model_type", "t2v") != "t2v":
        raise ValueError(f"model_id names a {original['model_type']} model; use a diffusion-forcing (DF) model.")
    missing = [key for key in ("dim", "ffn_dim", "num_heads", "num_layers") if key not in original]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; is this a SkyReels-V2 folder?")
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


def _replace_stem(key: str, stems: dict[str, str]) -> str | None:
    """Replace the part of a key before ``.weight`` or ``.bias`` (or all of it) by its counterpart."""
    stem, dot, leaf = key.rpartition(".")
    if key in stems:
        return stems[key]
    if leaf in ("weight", "bias") and stem in stems:
        return stems[stem] + dot + leaf
    return None
