"""Names of the official MAGI-1 checkpoints and ours, and what their quantised tensors mean."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .transformer import MagiTransformer3DModel

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


#: Linear layers of a block that quantised checkpoints hold in fp8: with one scale for the input, or with one
#: for each of its channels. The first and the last block are never quantised.
_FP8_PLAIN = ("attention.to_q", "attention.to_q_cross", "attention.to_k", "attention.to_v", "feed_forward.up")
_FP8_SMOOTHED = ("attention.to_out", "feed_forward.down")


def official_shapes(model: MagiTransformer3DModel, fp8: bool = False) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of all tensors of a model, which may lie on the meta device.

    Args:
        model: of the configuration in question.
        fp8: of a quantised checkpoint.
    """
    shapes = {}
    for name, tensor in model.state_dict().items():
        official, shape = official_key(name), tuple(tensor.shape)
        kind = _fp8_kind(name, model.config.num_layers) if fp8 else None
        if kind is None:
            shapes[official] = shape
            continue
        stem = official.removesuffix("weight")
        shapes |= {official: (1, *shape), f"{stem}weight_scale": (1,)}
        shapes[f"{stem}input_scale"] = (1,) if kind == "smoothed" else shape[1:]
        if kind == "smoothed":
            shapes[f"{stem}smooth_scale"] = (1, *shape[1:])
    return shapes


def official_key(name: str) -> str:
    """The official name of one of our tensors."""
    if name in _WHOLE_BACK:
        return _WHOLE_BACK[name]
    stem, _, last = name.rpartition(".")
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    if layer:
        return f"videodit_blocks.layers.{layer[1]}.{_LAYER_BACK[layer[2]]}.{last}"
    return f"{_OUTER_BACK[stem]}.{last}"


def dequantise(tensors: Mapping[str, Tensor], official: str) -> Tensor:
    """The plain weight behind a quantised one, in fp32; others are returned as they are.

    A quantised layer multiplies its rounded, scaled input with the stored weight and undoes both scales; so
    the weight that it stands for is the stored one times its scale, and, where each input channel has a scale
    of its own, times the input's scale and divided by the channel's.
    """
    weight, stem = tensors[official], official.removesuffix("weight")
    if f"{stem}weight_scale" not in tensors:
        return weight
    plain = weight[0].float() * tensors[f"{stem}weight_scale"].float()
    if f"{stem}smooth_scale" in tensors:
        scale = tensors[f"{stem}input_scale"].float() / tensors[f"{stem}smooth_scale"].float()
        plain = plain * scale
    return plain


def _fp8_kind(name: str, num_layers: int) -> str | None:
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if not layer or int(layer[1]) in (0, num_layers - 1):
        return None
    if layer[2] in _FP8_PLAIN:
        return "plain"
    return "smoothed" if layer[2] in _FP8_SMOOTHED else None


_OUTER_BACK, _WHOLE_BACK, _LAYER_BACK = (
    {ours: official for official, ours in table.items()} for table in (_OUTER, _WHOLE, _LAYER)
)
