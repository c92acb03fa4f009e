"""MAGI-1 with FlowCache."""

from flowcache.environment import quiet_imports

with quiet_imports():
    from .methods import METHODS, method_config
    from .model_source import resolve_model
    from .pipeline import MagiConfig, MagiPipeline, load_pipeline

__all__ = ["METHODS", "MagiConfig", "MagiPipeline", "load_pipeline", "method_config", "resolve_model"]
