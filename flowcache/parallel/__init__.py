"""One video over several processes, on ``torch.distributed``."""

from .group import Group, Traffic
from .layout import SINGLE, Layout
from .sequence import SequenceShares

__all__ = ["SINGLE", "Group", "Layout", "SequenceShares", "Traffic"]
