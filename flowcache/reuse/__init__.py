"""When a chunk skips the model: a policy a file, registered here; and what is forecast instead."""

from collections.abc import Mapping
from typing import Any

from ..registry import make_by_name
from .chunkwise import ChunkwiseReuse
from .interval import Interval
from .policy import Decision, NoReuse, ReusePolicy
from .teacache import TeaCache

#: Policies by the name that flags, keys and traces use.
POLICIES: dict[str, type[ReusePolicy]] = {
    "none": NoReuse,
    "teacache": TeaCache,
    "chunkwise": ChunkwiseReuse,
    "interval": Interval,
}

#: Former names.
ALIASES = {"fixed_interval": "interval"}

__all__ = ["POLICIES", "ChunkwiseReuse", "Decision", "Interval", "NoReuse", "ReusePolicy", "TeaCache", "make_policy"]


def make_policy(name: str, options: Mapping[str, Any] | None = None) -> ReusePolicy:
    """Make a policy of ``POLICIES`` with options; text is converted to an option's type."""
    return make_by_name("policy", POLICIES, ALIASES.get(name, name), options or {})
