"""Scores by which tokens are kept: a scorer is a file here and a line in ``SCORERS``."""

from .base import ScoreInput, Scorer
from .importance import Importance
from .key_norm import KeyNorm
from .paper import Paper
from .participative import Participative
from .random import Random
from .recency import Recency
from .redundancy import Redundancy
from .sink_window import SinkWindow
from .spread import Spread
from .static_dynamic import StaticDynamic

SCORERS: dict[str, type[Scorer]] = {
    "spread": Spread,
    "paper": Paper,
    "importance": Importance,
    "redundancy": Redundancy,
    "recency": Recency,
    "sink_window": SinkWindow,
    "participative": Participative,
    "static_dynamic": StaticDynamic,
    "key_norm": KeyNorm,
    "random": Random,
}

__all__ = ["SCORERS", *(scorer.__name__ for scorer in SCORERS.values()), "ScoreInput", "Scorer"]
