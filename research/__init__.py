"""Scripts that made the figures of the docs and the small checkpoints; run as ``python -m research.NAME``."""

from importlib import import_module

from flowcache.environment import quiet_imports

with quiet_imports():
    import_module("diffusers.models.modeling_utils")  # before a script's imports from diffusers
