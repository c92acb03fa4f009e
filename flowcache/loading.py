"""How a model's weights are held and run: options that all models share."""

import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from .registry import check_options, described


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of loading a pipeline, beside the choice of its weights and device.

    A value out of range is a ValueError that names the option.
    """

    offload: bool = described("idle components in host memory", False)
    vae_dtype: Literal["auto", "bf16", "fp32"] = described(
        "type of the VAE; auto: bf16 on CUDA, as the original, otherwise fp32", "auto"
    )
    compile: bool = described("transformer blocks compiled by torch.compile in the first video: faster steps", False)

    def __post_init__(self) -> None:
        check_options(self)
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        if self.compile and not any(map(shutil.which, compilers)):
            raise ValueError(f"compile: expected a C++ compiler, got neither {' nor '.join(compilers)}; install g++.")

    def choose_vae_dtype(self, device: torch.device) -> torch.dtype:
        types = {"bf16": torch.bfloat16, "fp32": torch.float32}
        return types.get(self.vae_dtype, types["bf16" if device.type == "cuda" else "fp32"])

    def settings(self) -> dict[str, Any]:
        """Those that change a video, for JSON."""
        own = asdict(self)
        del own["offload"]
        return own
