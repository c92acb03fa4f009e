"""Names and sizes of the original checkpoints, translated to diffusers and transformers.

Tensors are renamed, never reshaped; unknown names stay. The transformer's names are tested against the
published ones, those of the text encoder and the VAE only against the libraries' models.
"""

import re
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from diffusers.loaders import SkyReelsV2LoraLoaderMixin, single_file_utils

from ..model_files import default_arguments

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"

#: Sizes of the text encoder, whose file holds no configuration, and of the VAE, beside the libraries' defaults.
UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
WAN_VAE: dict[str, Any] = {}

#: The original configuration of the 1.3B model; most keys are those of diffusers.
ORIGINAL_CONFIG = default_arguments(SkyReelsV2Transformer3DModel) | {"model_type": "t2v", "qk_norm": True}
ORIGINAL_CONFIG |= {"window_size": [-1, -1], "dim": 1536, "num_heads": 12, "in_dim": 16, "out_dim": 16}

#: Configurations of the official models, by family.
OFFICIAL_CONFIGS = {
    "1.3B": {**ORIGINAL_CONFIG, "ffn_dim": 8960, "num_layers": 30, "inject_sample_info": True},
    "Wan-1.3B": {**ORIGINAL_CONFIG, "ffn_dim": 8960, "num_layers": 30},
    "14B": {**ORIGINAL_CONFIG, "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}

# Names in Wan's file of the umT5 encoder; those within a block follow ``blocks.N.``.
_T5_PARTS = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "norm1": "layer.0.layer_norm",
    **{f"attn.{p}": f"layer.0.SelfAttention.{p}" for p in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_ANY = torch.empty(2, 2, 2, 2, device="meta")  # the converters look at some tensors of other models


def transformer_key(original: str) -> str:
    key = next(iter(single_file_utils.convert_wan_transformer_to_diffusers({original: _ANY})))
    for old, new in (("0", "0.proj"), ("2", "2")):
        key = key.replace(f"fps_projection.{old}.", f"fps_projection.net.{new}.")
    return key


def text_encoder_key(original: str) -> str:
    stem = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.weight", original)
    if stem is None or stem[2] not in _T5_PARTS:
        return original
    prefix = f"encoder.block.{stem[1]}." if stem[1] else ""
    return f"{prefix}{_T5_PARTS[stem[2]]}.weight"


def vae_key(original: str) -> str:
    return next(iter(single_file_utils.convert_wan_vae_to_diffusers({original: _ANY})))


def lora_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate LoRA weights for Wan's original layers, by any trainer that diffusers knows."""
    if any(re.match(r"blocks\.\d+\.(self_attn|cross_attn|ffn\.[02])\.", name) for name in state):
        state = {f"diffusion_model.{name}": tensor for name, tensor in state.items()}
    return SkyReelsV2LoraLoaderMixin.lora_state_dict(state)


def transformer_config(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``SkyReelsV2Transformer3DModel`` from the original ``config.json``."""
    original = {**ORIGINAL_CONFIG, **given}
    if (kind := original["model_type"]) != "t2v":
        raise ValueError(f"model_id names a {kind} model; only t2v models (of SkyReels-V2: DF) are supported.")
    if missing := [key for key in ("dim", "ffn_dim", "num_heads", "num_layers") if key not in given]:
        raise ValueError(f"config.json lacks {', '.join(missing)}.")
    for key, supported in (("qk_norm", True), ("window_size", [-1, -1])):
        if original[key] != supported:
            raise ValueError(f"config.json: {key}: expected {supported}, got {original[key]}.")
    same = ("text_dim", "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "inject_sample_info")
    return {
        "patch_size": tuple(original["patch_size"]),
        "num_attention_heads": original["num_heads"],
        "attention_head_dim": original["dim"] // original["num_heads"],
        "in_channels": original["in_dim"],
        "out_channels": original["out_dim"],
        **{key: original[key] for key in same},
    }
