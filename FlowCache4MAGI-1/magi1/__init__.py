"""MAGI-1 with FlowCache."""

from flowcache.pipeline import VideoOutput

from .config import MagiConfig
from .methods import METHODS, method_config
from .model_source import ModelSource, resolve_model
from .pipeline import MagiPipeline, load_pipeline

__all__ = [
    "METHODS",
    "MagiConfig",
    "MagiPipeline",
    "ModelSource",
    "VideoOutput",
    "load_pipeline",
    "method_config",
    "resolve_model",
]
