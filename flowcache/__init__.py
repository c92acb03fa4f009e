"""FlowCache: chunkwise caching for autoregressive video diffusion (arXiv 2602.10825)."""

from .config import FlowCacheConfig
from .denoise import CleanChunk, Denoiser, LoopOptions
from .pipeline import VideoOutput, disable, enable
from .schedule import StaircaseSchedule
from .trace import Trace
from .window import Window, cut_window

__all__ = [
    "CleanChunk",
    "Denoiser",
    "FlowCacheConfig",
    "LoopOptions",
    "StaircaseSchedule",
    "Trace",
    "VideoOutput",
    "Window",
    "cut_window",
    "disable",
    "enable",
]
