"""SkyReels-V2 with FlowCache."""

from flowcache.environment import quiet_imports

with quiet_imports():
    from flowcache.pipeline import VideoOutput

    from .checkpoint import ModelSource, load_pipeline, resolve_model
    from .methods import METHODS, method_config
    from .pipeline import FlowCacheSkyReelsV2Pipeline
    from .settings import VideoSettings

__all__ = [
    "METHODS",
    "FlowCacheSkyReelsV2Pipeline",
    "ModelSource",
    "VideoOutput",
    "VideoSettings",
    "load_pipeline",
    "method_config",
    "resolve_model",
]
