"""Values that a user may type: usual ones, ones at a bound, and ones far beyond."""

from __future__ import annotations

from random import Random

#: As a command line holds them. YAML and ``int()`` read some of them in their own way.
NUMBERS = (
    *("0", "1", "2", "3", "4", "5", "7", "8", "9", "16", "17", "24", "32", "33", "64", "97", "128", "1000"),
    *("-1", "-4", "-0.0", "0.5", "1.0", "1.5", "1e-5", "1e3", "2.0", "999.5", "+5", "1_000", "0x10"),
    *("65536", "1000000", "1000000000", "1000000001", "2147483647", "2147483648", "4611686018427387904"),
    *("9223372036854775807", "9223372036854775808", "1" + "0" * 400, "1e-300", "1e38", "1e308", "1e309"),
    *("nan", ".nan", "inf", "-inf", ".inf", "", " ", "１２", "1,5", "true", "null", "[]", "{}", "[1", "x"),
)

TEXTS = (
    *("a", "a red circle", "", " ", "\t", "中文提示", "émile", "\N{GRINNING FACE}", "a" * 300, "a" * 5000),
    *("é" * 130, "a\nb", "\udcff", "a\udcffb", "-", "a/b", "../x", ".hidden", "%s %d", "{x}", "\x1b[31m"),
    *("null", "nan", "\ufeffa", "a\u202eb", "~", "word " * 400, "<pad>", "\\", '"', "'"),
)

#: Relative to the case's folder; no input file lies there.
MISSING_PATHS = (
    *(
        "missing",
        "missing.mp4",
        "missing/deep/er.mp4",
        "",
        " ",
        ".",
        "~",
        "~/new/a.mp4",
        "~nosuch_user/a.mp4",
    ),
    *("x" * 240 + ".mp4", "x" * 255, "x" * 300, "é" * 120 + ".mp4", "y/" * 1000 + "a.mp4", "a\nb.mp4"),
    *("\udcff.mp4", "/proc/nowhere/a.mp4", "/dev/null/a", "a.avi", "a.MP4", ".mp4", "a.mp4/", "中.mp4", "-a"),
    *("a\udcff/b.mp4", "a.part.mp4", "con", "file:///a.mp4", "http://127.0.0.1:9/a.mp4", "%03d.png", "*.mp4"),
)

#: What a document may hold in a place that asks for something else.
PLAIN_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**62, 2**63, 10**9, 10**400, 0.5, -0.5, 1e-300, 1e38),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "../x", "nan", "1", "中", "a" * 300, "\ud800"),
    *([], [[]], [1, 2], ["a"], [None], {}, {"a": 1}, {"": {}}),
)


def number(rng: Random) -> str:
    """A number as text, or text in the place of one."""
    return rng.choice(NUMBERS)


def text(rng: Random) -> str:
    """A text that few would type."""
    return rng.choice(TEXTS)


def plain_value(rng: Random) -> object:
    """A value that JSON or YAML can hold."""
    return rng.choice(PLAIN_VALUES)
