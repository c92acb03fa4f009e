"""Flags that a run does not read: refused where the user typed them, dropped where a script set them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping

from .command_line import override_default


class UnreadFlags:
    """Sets flags to None that a run does not read, and keeps the reasons for those that the user typed.

    Args:
        args: flags as ``Parser`` gives them, None where one was not given; changed in place.
    """

    def __init__(self, args: Namespace) -> None:
        self._args = args
        self.reasons: dict[str, str] = {}

    def drop(self, name: str, reason: str) -> None:
        """Drop a flag, unless it was not given."""
        if getattr(self._args, name) is None:
            return
        if self._typed(name):
            self.reasons[name] = reason
            setattr(self._args, name, None)
        else:
            override_default(self._args, name, None)

    def exclude(self, first: str, second: str) -> None:
        """Drop the one of two flags that a script set.

        Raises:
            ValueError: both come from the same place.
        """
        if getattr(self._args, first) is None or getattr(self._args, second) is None:
            return
        if self._typed(first) == self._typed(second):
            raise ValueError(f"{first} and {second} exclude each other: leave one of them out.")
        override_default(self._args, second if self._typed(first) else first, None)

    def _typed(self, name: str) -> bool:
        return not self._args.typed.isdisjoint({name, f"no-{name}"})


def refuse_unread(*runs: Mapping[str, str]) -> None:
    """Refuse a flag that none of the runs reads.

    Args:
        runs: for each, reasons by flag.

    Raises:
        ValueError: one sentence that names the flag.
    """
    for name in runs[0]:
        if all(name in reasons for reasons in runs):
            why = ", ".join(dict.fromkeys(reasons[name] for reasons in runs))
            raise ValueError(f"{name} has no effect: {why}; leave it out.")
