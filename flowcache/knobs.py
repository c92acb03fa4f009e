"""Which knobs a method has; a knob asks for a rule of its own by which steps are skipped.

The checks take the knobs by the names that whoever set them knows, the threshold first, so that a refusal
names what was typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: How many of the knobs a method has, and what that means; other methods have all.
_HAD = {
    "vanilla": (0, "vanilla computes every step"),
    "causal": (0, "causal computes every step"),
    "teacache": (1, "teacache takes {threshold}"),
}


def only_knob(knobs: Mapping[str, Any]) -> str | None:
    """Name of the knob that is set; None: none is.

    Args:
        knobs: values by name; None where a knob is left open.

    Raises:
        ValueError: several are set.
    """
    given = [name for name, value in knobs.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: each asks for a rule of its own.")
    return given[0] if given else None


def knobs_of(method: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs as the method gets them: None where it has none of that name.

    Args:
        method: as the models name it.
        knobs: values of all knobs by name, the threshold first; None where one is left open.
    """
    had, _ = _HAD.get(method, (len(knobs), ""))
    return {name: value if place < had else None for place, (name, value) in enumerate(knobs.items())}


def unread_knobs(method: str, knobs: Mapping[str, Any]) -> dict[str, str]:
    """Why the method reads none of that name, by knob that is set; arguments as those of ``knobs_of``."""
    _, reason = _HAD.get(method, (0, ""))
    had = knobs_of(method, knobs)
    return {
        name: reason.format(threshold=next(iter(knobs)))
        for name, value in knobs.items()
        if value is not None and had[name] is None
    }


def check_knobs(knobs: Mapping[str, Any], method: str) -> None:
    """Refuse a knob that the method lacks; arguments as those of ``knobs_of``.

    Raises:
        ValueError: several knobs are set, or one that the method lacks.
    """
    only_knob(knobs)
    for name, reason in unread_knobs(method, knobs).items():
        raise ValueError(f"{name} is for flowcache; {reason}.")
