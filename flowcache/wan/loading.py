"""How weights of Wan's parts are held and run."""

from dataclasses import dataclass
from typing import Any

import torch

from ..finite import check_finite_weights
from ..loading import LoadOptions
from ..registry import described


def choose_dtype(device: torch.device) -> torch.dtype:
    """Type of transformer and text encoder: bf16 on CUDA, fp32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@dataclass(frozen=True, kw_only=True)
class WanLoading(LoadOptions):
    vae_tiling: bool = described("VAE in tiles of 256 pixels: less memory, slower", False)

    def place(self, pipeline: Any, device: torch.device) -> None:
        """Move a loaded pipeline to its device, tiled, offloaded and compiled as asked; refuse weights not finite."""
        if self.vae_tiling:
            pipeline.vae.enable_tiling()
        if self.offload:
            pipeline.enable_stage_offload(device)
        else:
            pipeline.to(device)
        if self.compile:
            pipeline.transformer.compile_repeated_blocks(dynamic=True)
        check_finite_weights(pipeline.components)
