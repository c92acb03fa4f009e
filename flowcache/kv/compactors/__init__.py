"""What becomes of the kept rows: a compactor is a file here and a line in ``COMPACTORS``."""

from .base import Compactor
from .matched import Matched
from .retimed import Retimed
from .select import Select

COMPACTORS: dict[str, type[Compactor]] = {"matched": Matched, "select": Select, "retimed": Retimed}

__all__ = ["COMPACTORS", *(compactor.__name__ for compactor in COMPACTORS.values()), "Compactor"]
