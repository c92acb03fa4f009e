"""How weights are held and run, beside what all models share."""

from dataclasses import dataclass

from ..loading import LoadOptions
from ..registry import described


@dataclass(frozen=True, kw_only=True)
class WanLoading(LoadOptions):
    vae_tiling: bool = described("VAE in tiles of 256 pixels: less memory, slower", False)
