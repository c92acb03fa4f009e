"""SkyReels-V2 with FlowCache."""

from .checkpoint import ModelSource, load_pipeline, resolve_model
from .methods import METHODS, method_config
from .pipeline import Condition, FlowCacheSkyReelsV2Pipeline, VideoOutput
from .settings import VideoSettings

__all__ = [
    "METHODS",
    "Condition",
    "FlowCacheSkyReelsV2Pipeline",
    "ModelSource",
    "VideoOutput",
    "VideoSettings",
    "load_pipeline",
    "method_config",
    "resolve_model",
]
