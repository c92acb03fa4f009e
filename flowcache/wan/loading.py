"""How weights of Wan's parts are held and run."""

from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..finite import check_finite_weights
from ..loading import LoadOptions
from ..parallel import Group
from ..parallel.sharding import shard_blocks
from ..registry import described
from .attention import use_chunkwise_blocks
from .conversion import lora_names

Pipeline = TypeVar("Pipeline")


def choose_dtype(device: torch.device) -> torch.dtype:
    """Type of transformer and text encoder: bf16 on CUDA, fp32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@dataclass(frozen=True, kw_only=True)
class WanLoading(LoadOptions):
    vae_tiling: bool = described("VAE in tiles of 256 pixels: less memory, slower", False)

    def build(self, kind: type[Pipeline], parts: dict[str, Any], defaults: dict[str, Any]) -> Pipeline:
        """Make a pipeline of parts, quantised, with LoRA weights and tiled as asked, and with default settings."""
        self.adapt(parts, lora_names)
        pipeline = kind(**parts)
        pipeline.model_defaults = defaults
        if self.vae_tiling:
            pipeline.vae.enable_tiling()
        return pipeline

    def place(self, pipeline: Any, device: torch.device, group: Group) -> None:
        """Move a loaded pipeline to its device, offloaded and compiled as asked; refuse weights not finite.

        ``group``: the processes over which weights are spread, if that is asked for.
        """
        check_finite_weights(pipeline.components)
        if self.shard_weights:
            use_chunkwise_blocks(pipeline.transformer)  # a class that is changed later would lose FSDP's methods
            shard_blocks(pipeline.transformer.blocks, group, device)
        if self.offload:
            pipeline.enable_stage_offload(device)
        else:
            pipeline.to(device)
        if self.compile:
            pipeline.transformer.compile_repeated_blocks(dynamic=True)
