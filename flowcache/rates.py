"""Frame rates: exact fractions for files, plain numbers for settings and JSON."""

import math
from fractions import Fraction

#: Frames per second; a file that claims another rate is damaged.
SLOWEST, FASTEST = Fraction(1, 100), Fraction(1000)


def exact_rate(rate: float | Fraction | str) -> Fraction:
    """The fraction that a rate stands for: 24000/1001 for 23.976 and for ``"24000/1001"``."""
    try:
        fraction = Fraction(rate) if "/" in str(rate) else Fraction(float(rate))
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        fraction = Fraction(0)
    if not SLOWEST <= fraction <= FASTEST:
        known = f"a number from {float(SLOWEST):g} to {FASTEST}, such as 24, 23.976 or 24000/1001"
        raise ValueError(f"fps must be {known}, got {rate}.")
    # NTSC rates are commonly written with two or three decimals.
    ntsc = Fraction(round(fraction * 1001 / 1000) * 1000, 1001)
    if fraction.denominator > 1 and math.isclose(fraction, ntsc, rel_tol=2e-4):
        return ntsc
    return fraction.limit_denominator(1001)


def plain_rate(rate: float | Fraction | str) -> int | float:
    """The rate as a number for JSON, from which ``exact_rate`` restores the fraction; errors as there."""
    exact = exact_rate(rate)
    return exact.numerator if exact.denominator == 1 else float(exact)
