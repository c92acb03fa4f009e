"""FlowCache: chunkwise caching for autoregressive video diffusion (arXiv 2602.10825)."""

from .config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from .denoise import CleanChunk, Denoiser
from .pipeline import VideoOutput, disable, enable
from .reuse import ReusePolicy
from .schedule import StaircaseSchedule
from .trace import Trace
from .window import Window, cut_window

__all__ = [
    "CleanChunk",
    "Denoiser",
    "FlowCacheConfig",
    "KVCompressionConfig",
    "KVStorageConfig",
    "ReusePolicy",
    "StaircaseSchedule",
    "Trace",
    "VideoOutput",
    "Window",
    "cut_window",
    "disable",
    "enable",
]
