"""Pictures of traces: of one run, and of several beside each other."""

from .distances import distance_curves, step_distances
from .maps import reuse_map
from .over_time import cache_over_time
from .style import COMPUTED, GIVEN, REUSED
from .tradeoff import Point, tradeoff

__all__ = [
    "COMPUTED",
    "GIVEN",
    "REUSED",
    "Point",
    "cache_over_time",
    "distance_curves",
    "reuse_map",
    "step_distances",
    "tradeoff",
]
