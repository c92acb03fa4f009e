"""Self-Forcing and Causal-Forcing with FlowCache."""

from flowcache.environment import quiet_imports

with quiet_imports():
    from flowcache.pipeline import VideoOutput

    from .checkpoint import ModelSource, load_pipeline, resolve_model
    from .methods import method_config
    from .pipeline import FlowCacheSelfForcingPipeline
    from .settings import VideoSettings

__all__ = [
    "FlowCacheSelfForcingPipeline",
    "ModelSource",
    "VideoOutput",
    "VideoSettings",
    "load_pipeline",
    "method_config",
    "resolve_model",
]
