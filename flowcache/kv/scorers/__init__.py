"""Scores by which tokens are kept: a scorer is a class here and a line in ``SCORERS``."""

from .base import ScoreInput, Scorer
from .controls import KeyNorm, Random, Recency, SinkWindow
from .importance import Importance
from .paper import Paper, Redundancy

SCORERS: dict[str, type[Scorer]] = {
    "paper": Paper,
    "importance": Importance,
    "redundancy": Redundancy,
    "recency": Recency,
    "sink_window": SinkWindow,
    "key_norm": KeyNorm,
    "random": Random,
}

__all__ = ["SCORERS", *(scorer.__name__ for scorer in SCORERS.values()), "ScoreInput", "Scorer"]
