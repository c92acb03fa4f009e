"""Names and shapes of the tensors of official MAGI-1 checkpoints, and the meaning of quantised ones."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .quantised import PLAIN, SMOOTHED
from .transformer import MagiTransformer3DModel

#: Our name of a module or parameter to the official one; those of a layer, to the names inside of it.
_OUTER = {
    "patch_embed": "x_embedder",
    "time_embed.linear_1": "t_embedder.mlp.0",
    "time_embed.linear_2": "t_embedder.mlp.2",
    "caption_embed.null_caption": "y_embedder.null_caption_embedding",
    "caption_embed.to_cross": "y_embedder.y_proj_xattn.0",
    "caption_embed.to_condition": "y_embedder.y_proj_adaln.0",
    "rotary_bands": "rope.bands",
    "norm_out": "videodit_blocks.final_layernorm",
    "proj_out": "final_linear.linear",
}
_LAYER = {
    "gates": "ada_modulate_layer.proj.0",
    "attention.norm": "self_attention.linear_qkv.layer_norm",
    "attention.to_q": "self_attention.linear_qkv.q",
    "attention.to_q_cross": "self_attention.linear_qkv.qx",
    "attention.to_k": "self_attention.linear_qkv.k",
    "attention.to_v": "self_attention.linear_qkv.v",
    "attention.to_kv_cross": "self_attention.linear_kv_xattn",
    "attention.to_out": "self_attention.linear_proj",
    "attention.norm_q": "self_attention.q_layernorm",
    "attention.norm_k": "self_attention.k_layernorm",
    "attention.norm_q_cross": "self_attention.q_layernorm_xattn",
    "attention.norm_k_cross": "self_attention.k_layernorm_xattn",
    "attention_norm": "self_attn_post_norm",
    "feed_forward.norm": "mlp.layer_norm",
    "feed_forward.up": "mlp.linear_fc1",
    "feed_forward.down": "mlp.linear_fc2",
    "feed_forward_norm": "mlp_post_norm",
}


def official_key(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    stem, _, last = name.rpartition(".")
    if layer := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem):
        return f"videodit_blocks.layers.{layer[1]}.{_LAYER[layer[2]]}.{last}"
    return f"{_OUTER[stem]}.{last}"


def lora_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate LoRA weights for the official layers."""
    ours = {official: name for name, official in _LAYER.items()}

    def translate(name: str) -> str:
        found = re.fullmatch(r"(?:.+\.)?videodit_blocks\.layers\.(\d+)\.(.+?)(\.lora_.+|\.alpha)", name)
        return f"blocks.{found[1]}.{ours[found[2]]}{found[3]}" if found and found[2] in ours else name

    return {translate(name): tensor for name, tensor in state.items()}


def official_shapes(model: MagiTransformer3DModel, fp8: bool = False) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of all tensors of a model; ``fp8``: of its quantised checkpoint.

    The model has the layout of plain weights, and may be on the meta device.
    """
    shapes = {}
    for name, tensor in model.state_dict().items():
        official, shape = official_key(name), tuple(tensor.shape)
        shapes[official] = shape
        layer = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
        if not fp8 or layer is None or not 0 < int(layer[1]) < model.config.num_layers - 1:
            continue
        stem = official.removesuffix("weight")
        if layer[2] in (*PLAIN, *SMOOTHED):
            shapes |= {official: (1, *shape), f"{stem}weight_scale": (1,), f"{stem}input_scale": shape[1:]}
        if layer[2] in SMOOTHED:
            shapes |= {f"{stem}input_scale": (1,), f"{stem}smooth_scale": (1, *shape[1:])}
    return shapes


def quantised_state(tensors: Mapping[str, Tensor], official: str) -> dict[str, Tensor] | None:
    """State of a ``QuantisedLinear`` for a weight of a checkpoint; None for a plain weight.

    Without a scale for each channel, the input's scale is a vector; the original's kernel reads its first
    number.
    """
    stem = official.removesuffix("weight")
    if f"{stem}weight_scale" not in tensors:
        return None
    input_scale = tensors[f"{stem}input_scale"].float()
    return {
        "weight": tensors[official][0].view(torch.uint8),
        "channel_scale": tensors.get(f"{stem}smooth_scale", input_scale).float().flatten(),
        "input_scale": input_scale[:1].clone(),  # safetensors saves no views
        "weight_scale": tensors[f"{stem}weight_scale"].float(),
    }


def dequantise(tensors: Mapping[str, Tensor], official: str) -> Tensor:
    """The plain weight, in fp32, for a quantised one; others unchanged."""
    state = quantised_state(tensors, official)
    if state is None:
        return tensors[official]
    scale = state["input_scale"] / state["channel_scale"] * state["weight_scale"]
    return tensors[official][0].float() * scale
