"""Checks of everything that differs on a GPU, and its speed at true sizes: ``bash scripts/check_gpu.sh``."""
