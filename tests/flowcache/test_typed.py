"""What a file holds, held against types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from flowcache.typed import as_type


@dataclass(frozen=True)
class Point:
    x: float
    y: float | None = None
    labels: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    points: tuple[Point, ...]
    closed: bool
    more: Any = None


def test_what_fits_is_made():
    content = {
        "points": [{"x": 1}, {"x": 0.5, "y": None, "labels": {"3": "a"}}],
        "closed": True,
        "more": [{}],
    }
    assert as_type(content, Line) == Line((Point(1), Point(0.5, None, {3: "a"})), True, [{}])
    assert as_type([[1], []], list[list[int]]) == [[1], []]
    assert as_type(None, Point | None) is None


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "its content must be an object"),
        ({"points": [], "closed": 1}, "closed must be true or false"),
        ({"points": {}, "closed": True}, "points must be a list"),
        ({"points": [3], "closed": True}, r"points\[0\] must be an object, got 3"),
        ({"points": [{"x": "1"}], "closed": True}, r"points\[0\].x must be a number, got '1'"),
        ({"points": [{"x": True}], "closed": True}, r"points\[0\].x must be a number"),
        ({"points": [{"x": 1, "labels": {"3": 3}}], "closed": True}, "labels.3 must be text"),
        ({"points": [{"x": 1, "labels": {"a": "b"}}], "closed": True}, "'a'"),
        ({"points": []}, "lacks closed"),
        ({"points": [], "closed": True, "open": 1}, "unknown field 'open'"),
    ],
)
def test_what_does_not_fit_is_named(content, named):
    with pytest.raises(ValueError, match=named):
        as_type(content, Line)
