"""Scripts that made the figures of the docs and the small checkpoints; run as ``python -m research.NAME``."""
