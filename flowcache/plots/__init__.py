"""Pictures of one run's trace and of several runs beside each other."""

from .comparisons import Point, cache_over_time, tradeoff
from .runs import distance_curves, reuse_map, step_distances
from .style import COMPUTED, GIVEN, REUSED, format_flops, format_saving

__all__ = [
    "COMPUTED",
    "GIVEN",
    "REUSED",
    "Point",
    "cache_over_time",
    "distance_curves",
    "format_flops",
    "format_saving",
    "reuse_map",
    "step_distances",
    "tradeoff",
]
