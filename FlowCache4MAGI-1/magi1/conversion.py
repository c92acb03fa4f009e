"""Names of the official MAGI-1 checkpoints and ours."""

from __future__ import annotations

import re

#: Official name, up to its last part, to ours; ``{n}`` is the layer.
_OUTER = {
    "x_embedder": "patch_embed",
    "t_embedder.mlp.0": "time_embed.linear_1",
    "t_embedder.mlp.2": "time_embed.linear_2",
    "y_embedder.y_proj_xattn.0": "caption_embed.to_cross",
    "y_embedder.y_proj_adaln.0": "caption_embed.to_condition",
    "videodit_blocks.final_layernorm": "norm_out",
    "final_linear.linear": "proj_out",
}
_WHOLE = {
    "y_embedder.null_caption_embedding": "caption_embed.null_caption",
    "rope.bands": "rotary_bands",
}
_LAYER = {
    "ada_modulate_layer.proj.0": "gates",
    "self_attention.linear_qkv.layer_norm": "attention.norm",
    "self_attention.linear_qkv.q": "attention.to_q",
    "self_attention.linear_qkv.qx": "attention.to_q_cross",
    "self_attention.linear_qkv.k": "attention.to_k",
    "self_attention.linear_qkv.v": "attention.to_v",
    "self_attention.linear_kv_xattn": "attention.to_kv_cross",
    "self_attention.linear_proj": "attention.to_out",
    "self_attention.q_layernorm": "attention.norm_q",
    "self_attention.k_layernorm": "attention.norm_k",
    "self_attention.q_layernorm_xattn": "attention.norm_q_cross",
    "self_attention.k_layernorm_xattn": "attention.norm_k_cross",
    "self_attn_post_norm": "attention_norm",
    "mlp.layer_norm": "feed_forward.norm",
    "mlp.linear_fc1": "feed_forward.up",
    "mlp.linear_fc2": "feed_forward.down",
    "mlp_post_norm": "feed_forward_norm",
}


def transformer_key(official: str) -> str:
    """Our name of a tensor of the official transformer.

    Raises:
        KeyError: there is no such tensor.
    """
    if official in _WHOLE:
        return _WHOLE[official]
    stem, _, last = official.rpartition(".")
    layer = re.fullmatch(r"videodit_blocks\.layers\.(\d+)\.(.+)", stem)
    if layer:
        return f"blocks.{layer[1]}.{_LAYER[layer[2]]}.{last}"
    return f"{_OUTER[stem]}.{last}"
