"""Files that come with the project: in the checkout, or in ``data`` of the installed package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def shipped(name: str) -> Path:
    """Path of a folder of the project, such as ``assets/magi1_small``."""
    in_checkout = (_CHECKOUT / "pyproject.toml").is_file()
    return (_CHECKOUT if in_checkout else _PACKAGE / "data") / name
