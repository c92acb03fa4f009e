"""Scores by which tokens are kept; a scorer is one file."""

from .base import ScoreInput, Scorer
from .importance import Importance
from .key_norm import KeyNorm
from .paper import Paper
from .random import Random
from .recency import Recency
from .redundancy import Redundancy
from .sink_window import SinkWindow

#: Scorers by the name that settings know them by.
SCORERS: dict[str, type[Scorer]] = {
    "paper": Paper,
    "importance": Importance,
    "redundancy": Redundancy,
    "recency": Recency,
    "sink_window": SinkWindow,
    "key_norm": KeyNorm,
    "random": Random,
}

__all__ = [
    "SCORERS",
    "Importance",
    "KeyNorm",
    "Paper",
    "Random",
    "Recency",
    "Redundancy",
    "ScoreInput",
    "Scorer",
    "SinkWindow",
]
