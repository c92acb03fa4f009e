"""One video over several processes, on ``torch.distributed``."""

from .group import Group, Traffic
from .layout import SINGLE, Layout
from .sequence import SequenceShares
from .world import join_processes

__all__ = ["SINGLE", "Group", "Layout", "SequenceShares", "Traffic", "join_processes"]
