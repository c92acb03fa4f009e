"""One video over several processes, on ``torch.distributed``."""

from .group import Group, Traffic
from .layout import Layout
from .sequence import SequenceShares

__all__ = ["Group", "Layout", "SequenceShares", "Traffic"]
