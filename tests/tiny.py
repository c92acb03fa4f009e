"""A tiny transformer with the reference weights."""

from __future__ import annotations

from pathlib import Path

from diffusers import SkyReelsV2Transformer3DModel
from reference import Case


def tiny_transformer(folder: Path, knows_fps: bool = True) -> SkyReelsV2Transformer3DModel:
    """The transformer that the references were made with, sizes from the sidecar."""
    case = Case(folder, "weights_diffusers")
    sizes = Case(folder, "weights").info["config"]
    transformer = SkyReelsV2Transformer3DModel(
        patch_size=tuple(sizes["patch_size"]),
        num_attention_heads=sizes["num_heads"],
        attention_head_dim=sizes["dim"] // sizes["num_heads"],
        in_channels=sizes["in_dim"],
        out_channels=sizes["out_dim"],
        text_dim=sizes["text_dim"],
        freq_dim=sizes["freq_dim"],
        ffn_dim=sizes["ffn_dim"],
        num_layers=sizes["num_layers"],
        inject_sample_info=knows_fps,
    )
    weights = {k: v for k, v in case.tensors.items() if knows_fps or not k.startswith("fps_")}
    transformer.load_state_dict(weights, strict=True)
    return transformer.eval()
