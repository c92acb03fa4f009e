"""Frame rates."""

from fractions import Fraction

import pytest

from flowcache.rates import exact_rate, plain_rate

FILM, VIDEO = Fraction(24000, 1001), Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        *((rate, FILM) for rate in (23.976, "23.976", "23.98", "24000/1001", FILM, float(FILM))),
        *((rate, VIDEO) for rate in (29.97, "29.97", "30000/1001")),
        *((rate, rate) for rate in (1, 24, 900, 1000, Fraction(25, 2), Fraction(1, 2), Fraction(384, 37))),
    ],
)
def test_a_rate_stands_for_a_fraction(rate, exact):
    assert exact_rate(rate) == exact
    assert exact_rate(plain_rate(rate)) == exact, "a number in JSON gives it back"


@pytest.mark.parametrize(
    "rate", [0, -1, float("nan"), float("inf"), 10**9, "1/0", "x", "", None, [24], "9" * 5000]
)
def test_no_other_rate_is_taken(rate):
    with pytest.raises(ValueError, match="fps"):
        exact_rate(rate)
