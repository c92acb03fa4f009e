"""Names of the official MAGI-1 checkpoints and ours, and what their quantised tensors mean."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .quantised import PLAIN, SMOOTHED
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


def official_shapes(model: MagiTransformer3DModel, fp8: bool = False) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of all tensors of a model, which may lie on the meta device.

    Args:
        model: of the configuration in question, its layout that of plain weights.
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


def is_quantised(tensors: Mapping[str, Tensor], official: str) -> bool:
    """Whether a weight of a checkpoint comes with scales."""
    return f"{official.removesuffix('weight')}weight_scale" in tensors


def quantised_state(tensors: Mapping[str, Tensor], official: str) -> dict[str, Tensor]:
    """A quantised weight of a checkpoint as the state of a ``QuantisedLinear``.

    The scale of the input comes as a vector where there is one scale for all channels; the original's kernel
    reads its first number.
    """
    stem = official.removesuffix("weight")
    input_scale = tensors[f"{stem}input_scale"].float()
    return {
        "weight": tensors[official][0].view(torch.uint8),
        "channel_scale": tensors.get(f"{stem}smooth_scale", input_scale).float().flatten(),
        "input_scale": input_scale[:1].clone(),  # a file could not hold a view
        "weight_scale": tensors[f"{stem}weight_scale"].float(),
    }


def dequantise(tensors: Mapping[str, Tensor], official: str) -> Tensor:
    """The plain weight behind a quantised one, in fp32; others are returned as they are."""
    if not is_quantised(tensors, official):
        return tensors[official]
    state = quantised_state(tensors, official)
    scale = state["input_scale"] / state["channel_scale"] * state["weight_scale"]
    return tensors[official][0].float() * scale


def _fp8_kind(name: str, num_layers: int) -> str | None:
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if not layer or int(layer[1]) in (0, num_layers - 1):
        return None
    if layer[2] in PLAIN:
        return "plain"
    return "smoothed" if layer[2] in SMOOTHED else None


_OUTER_BACK, _WHOLE_BACK, _LAYER_BACK = (
    {ours: official for official, ours in table.items()} for table in (_OUTER, _WHOLE, _LAYER)
)
