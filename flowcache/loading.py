"""How a model's weights are held and run: options that all models share."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from .environment import require
from .fingerprint import file_digest
from .lora import Translate, fuse_lora, parse_lora
from .quantize import load_torchao, quantize_weights
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
    quantize: Literal["int8", "fp8", "int4"] | None = described(
        "weights of the blocks of transformer and text encoder, by torchao: less memory, not faster"
    )
    shard_weights: bool = described(
        "weights of the transformer's blocks spread over the processes of a video: less memory, slower", False
    )
    lora: tuple[str, ...] = described(
        "LoRA weights to fuse into the transformer, PATH or PATH:SCALE; repeatable (default: none; scale 1)", ()
    )

    def __post_init__(self) -> None:
        check_options(self)
        for text in self.lora:
            parse_lora(text)
        for name in ("offload", "compile", "quantize") if self.shard_weights else ():
            if value := getattr(self, name):
                raise ValueError(f"shard_weights: expected no {name} beside it, got {value}; leave one of them out.")
        if self.lora:
            require("peft", "lora", "lora")
        if self.quantize:
            load_torchao()
        compilers = (os.environ.get("CXX", "g++"), "clang++")
        if self.compile and not any(map(shutil.which, compilers)):
            raise ValueError(f"compile: expected a C++ compiler, got neither {' nor '.join(compilers)}; install g++.")

    def choose_vae_dtype(self, device: torch.device) -> torch.dtype:
        types = {"bf16": torch.bfloat16, "fp32": torch.float32}
        return types.get(self.vae_dtype, types["bf16" if device.type == "cuda" else "fp32"])

    def adapt(self, parts: Mapping[str, Any], translate: Translate = dict) -> None:
        """Fuse LoRA weights into a pipeline's parts, then quantise, all in place.

        ``translate`` as of ``flowcache.lora``. On the meta device, nothing is fused.
        """
        if parts["transformer"].device.type != "meta":
            fuse_lora(parts["transformer"], self.lora, translate)
        if self.quantize:
            for name in ("transformer", "text_encoder"):
                if parts[name] is not None:  # the first of several processes alone has the text encoder
                    quantize_weights(parts[name], self.quantize)

    def settings(self) -> dict[str, Any]:
        """The options that change a video, for JSON."""
        own = asdict(self)
        del own["offload"], own["shard_weights"]
        own["lora"] = [[file_digest(path), scale] for path, scale in map(parse_lora, self.lora)]
        return own
