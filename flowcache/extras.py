"""Packages that only a part of the project needs, and that may be absent."""

from importlib import import_module
from types import ModuleType


class Unavailable(RuntimeError):
    """A package or a download is missing; the message is one sentence."""


def require(module: str, purpose: str, extra: str) -> ModuleType:
    """Import an optional module of the project's ``extra``; ``purpose`` is the subject of the error."""
    try:
        return import_module(module)
    except ImportError as error:
        remedy = f"pip install -e '.[{extra}]' in this project"
        raise Unavailable(f"{purpose} needs {module}: {remedy}.") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise Unavailable(f"{purpose} needs {module}, which cannot be loaded here: {reason}") from error
