"""Sanity limits of settings, against typos and sizes that exceed any memory; errors are ValueErrors."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from .typed import check_fields

MAX_PIXELS = 2**40  # of all frames together: six hours of 24 frames a second in 1920 x 1080


def check_limits(settings: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a setting of another type than its field, or outside its limits; None has no limits."""
    if is_dataclass(settings):
        check_fields(settings)
    for name, bounds in limits.items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple | list) else (value,):
            check_number(name, number, *bounds)


def check_number(name: str, number: float | None, least: float, most: float) -> None:
    """Refuse a number outside its limits, or NaN; None has no limits."""
    if number is not None and not least <= number <= most:
        bound = f"at most {most}" if number > most else f"at least {least}"
        raise ValueError(f"{name} must be {bound}, got {number}.")


def check_pixels(num_frames: int, height: int, width: int) -> None:
    """Refuse a video that is too large in all, though each of its sizes is within its limits."""
    if num_frames * height * width > MAX_PIXELS:
        got = f"got {num_frames} x {height} x {width}; make fewer or smaller frames"
        raise ValueError(f"num_frames x height x width must be at most {MAX_PIXELS:.1e}, {got}.")
