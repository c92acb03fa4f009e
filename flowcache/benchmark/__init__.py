"""Measuring against published figures and benchmarks; ``python -m flowcache.benchmark --help``."""
