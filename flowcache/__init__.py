"""FlowCache: chunkwise caching for autoregressive video diffusion (arXiv 2602.10825)."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

#: Modules of the public names, which are imported on first use, as they load PyTorch.
_MODULES = {
    "CleanChunk": "denoise",
    "Denoiser": "denoise",
    "FlowCacheConfig": "config",
    "KVCompressionConfig": "config",
    "KVStorageConfig": "config",
    "PromptSchedule": "prompt_schedule",
    "ReusePolicy": "reuse",
    "StaircaseSchedule": "schedule",
    "Trace": "trace",
    "VideoOutput": "pipeline",
    "Window": "window",
    "cut_window": "window",
    "disable": "pipeline",
    "enable": "pipeline",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
