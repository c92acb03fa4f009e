"""Files that come with the project: in the checkout, or in ``data`` of the installed package."""

from pathlib import Path


def shipped(name: str) -> Path:
    """Path of a folder of the project, such as ``assets/magi1_small``."""
    package = Path(__file__).resolve().parent
    return (package.parent if (package.parent / "pyproject.toml").is_file() else package / "data") / name
