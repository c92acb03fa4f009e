"""Pictures of one run's trace and of several runs beside each other."""

from .comparisons import Point, cache_over_time, tradeoff
from .runs import distance_curves, reuse_map, step_distances

__all__ = ["Point", "cache_over_time", "distance_curves", "reuse_map", "step_distances", "tradeoff"]
