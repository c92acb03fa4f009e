"""Options of policies, scorers and videos: fields of dataclasses, checked where they are made, set by name."""

import ast
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, field, fields, is_dataclass
from fractions import Fraction
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .typed import as_type

T = TypeVar("T")

#: Pixels of all frames together: six hours of 24 frames a second in 1920 x 1080.
MAX_PIXELS = 2**40

#: Frames per second; a file that claims another rate is damaged.
SLOWEST, FASTEST = Fraction(1, 100), Fraction(1000)

_PLAIN = (bool, int, float, str, dict, list, tuple)


def option(default: Any = MISSING, least: float = -math.inf, most: float = math.inf) -> Any:
    """A dataclass field whose number, or each number of whose tuple, has sanity limits against typos."""
    return field(default=default, metadata={"limits": (least, most)})


def described(help: str, default: Any = None, **metadata: Any) -> Any:
    """A dataclass field that is an option of a program, with ``limits`` or ``choices`` to check."""
    made = {"default_factory": dict} if default is dict else {"default": default}
    return field(**made, metadata={"help": help, **metadata})


def check_options(made: Any) -> None:
    """Refuse a dataclass with a field of another type than annotated, or outside its limits or choices.

    The metadata of a field holds them as ``limits`` and ``choices``; None has neither.
    """
    kinds = get_type_hints(type(made))
    for each in fields(made):
        value, choices = getattr(made, each.name), each.metadata.get("choices")
        _check_type(each.name, value, kinds[each.name])
        for number in value if isinstance(value, tuple) else (value,):
            if "limits" in each.metadata:
                check_number(each.name, number, *each.metadata["limits"])
        if choices and value is not None and value not in choices:
            known = ", ".join(map(str, choices))
            raise ValueError(f"{each.name}: expected one of {known}, got {value!r}.")


def check_number(name: str, number: float | None, least: float, most: float) -> None:
    """Refuse a number outside its limits, or NaN; None has no limits."""
    if number is not None and not least <= number <= most:
        bound = f"at most {most}" if number > most else f"at least {least}"
        raise ValueError(f"{name}: expected {bound}, got {number}.")


def check_pixels(num_frames: int, height: int, width: int) -> None:
    """Refuse a video that is too large in all, though each of its sizes is within its limits."""
    if num_frames * height * width > MAX_PIXELS:
        got = f"got {num_frames} x {height} x {width}; make fewer or smaller frames"
        raise ValueError(f"num_frames x height x width: expected at most {MAX_PIXELS:.1e}, {got}.")


def exact_rate(rate: float | Fraction | str) -> Fraction:
    """The fraction that a rate stands for: 24000/1001 for 23.976 and for ``"24000/1001"``."""
    try:
        fraction = Fraction(rate) if "/" in str(rate) else Fraction(float(rate))
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        fraction = Fraction(0)
    if not SLOWEST <= fraction <= FASTEST:
        known = f"a number from {float(SLOWEST):g} to {FASTEST}, such as 24, 23.976 or 24000/1001"
        raise ValueError(f"fps: expected {known}, got {rate}.")
    # NTSC rates are commonly written with two or three decimals.
    ntsc = Fraction(round(fraction * 1001 / 1000) * 1000, 1001)
    if fraction.denominator > 1 and math.isclose(fraction, ntsc, rel_tol=2e-4):
        return ntsc
    return fraction.limit_denominator(1001)


def plain_rate(rate: float | Fraction | str) -> int | float:
    """The rate as a number for JSON, from which ``exact_rate`` restores the fraction; errors as there."""
    exact = exact_rate(rate)
    return exact.numerator if exact.denominator == 1 else float(exact)


def make_by_name(kind: str, registry: Mapping[str, type[T]], name: str, options: Mapping[str, Any] | None = None) -> T:
    """Make what a registry of a ``kind`` knows by ``name``, with options by field name.

    ``options``: values, or their text as typed on a command line (``none`` for None, ``1,2`` for a tuple).
    """
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"{kind}: expected one of {', '.join(registry)}, got {name!r}.")
    made = registry[name]
    kinds = get_type_hints(made)
    known = [each.name for each in fields(made) if each.init] if is_dataclass(made) else []
    values = {}
    for key, value in (options or {}).items():
        if key not in known:
            raise ValueError(f"{kind} {name}: expected {' or '.join(known) or 'no options'}, got {key!r}.")
        values[key] = _from_text(value, kinds[key])
    try:
        return made(**values)
    except ValueError as error:
        raise ValueError(f"{kind} {name}: {error}") from None


def describe(registry: Mapping[str, type[T]], made: T) -> tuple[str, dict[str, Any]]:
    """Name of an object in its registry (of a user's own class: that of the class) and its options."""
    name = next((key for key, kind in registry.items() if kind is type(made)), type(made).__name__)
    return name, asdict(made) if is_dataclass(made) else {}


def _check_type(name: str, value: Any, kind: Any) -> None:
    classes = [k for k in get_args(kind) or (kind,) if isinstance(k, type) and k not in _PLAIN]
    if isinstance(value, tuple(classes)):
        return
    if isinstance(value, dict):  # which would be read as the fields of a dataclass
        raise ValueError(f"{name}: expected an instance of its class, got a dict.")
    try:
        as_type(list(value) if isinstance(value, tuple) else value, kind, name)
    except ValueError as error:
        raise ValueError(f"{error}.") from None


def _from_text(value: Any, kind: Any) -> Any:
    """Value of a field's type; what cannot be read stays text and is refused by the field's check."""
    members = (kind, *get_args(kind))
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, str) or str in members:
        return value
    text = {"none": "None", "true": "True", "false": "False"}.get(value.strip().lower(), value.strip())
    try:
        read = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    takes_several = any(get_origin(each) is tuple for each in members)
    return read if read is None or not takes_several else tuple(read) if isinstance(read, list | tuple) else (read,)
