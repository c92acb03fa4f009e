"""How processes divide one video: guidance branches, and within them tokens and heads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from .group import Group

logger = logging.getLogger(__name__)

#: Most guidance branches that processes run apart.
MAX_BRANCHES = 2


@dataclass(frozen=True)
class Layout:
    """Processes of one video as guidance branches x tokens.

    Process ``i`` runs branch group ``i // tokens.size`` on token share ``i % tokens.size``. Attention splits KV heads
    by the shares of ``tokens``, too.

    Attributes:
        world: all processes of the video.
        branches: those that run the other guidance branches on the same share of tokens.
        tokens: those that share the tokens of the same branches.
    """

    world: Group = field(default_factory=Group)
    branches: Group = field(default_factory=Group)
    tokens: Group = field(default_factory=Group)

    @classmethod
    def plan(
        cls, world: Group, heads: int, kv_heads: int, guidance: bool = False, cfg_size: int | str = "auto"
    ) -> Layout:
        """Divide the processes of a video; ValueError says what to start instead.

        Args:
            world: all processes of the video.
            heads, kv_heads: query and key-value heads of the model.
            guidance: whether there are two guidance branches that may run apart.
            cfg_size: parts of guidance, 1 or 2; ``auto``: 2 where guidance and an even number of processes allow.
        """
        parts = choose_cfg_size(world.size, guidance, cfg_size)
        check_count(world.size, parts, kv_heads, guidance)
        if (sentence := describe_busy(world.size, parts, heads, kv_heads, guidance)) and world.is_first:
            logger.info("%s", sentence)
        return cls(world, *world.split(parts))


#: One process for the whole video.
SINGLE = Layout()


def choose_cfg_size(processes: int, guidance: bool, cfg_size: int | str = "auto") -> int:
    """Parts of guidance, 1 or 2, see ``Layout.plan``."""
    if cfg_size not in ("auto", 1, 2):
        raise ValueError(f"cfg_size: expected auto, 1 or 2, got {cfg_size!r}.")
    if cfg_size == "auto":
        return MAX_BRANCHES if guidance and processes % MAX_BRANCHES == 0 else 1
    if cfg_size == MAX_BRANCHES and not guidance:
        raise ValueError("cfg_size: expected 1 or auto without guidance, got 2; leave it out.")
    if processes % cfg_size:
        raise ValueError(
            f"cfg_size: expected an even number of processes for 2, got {processes}; start one more, or set it to 1."
        )
    return int(cfg_size)


def check_count(processes: int, cfg_size: int, kv_heads: int, guidance: bool = False) -> None:
    """Refuse more processes than there are heads for."""
    if processes // cfg_size > kv_heads:
        # More fit where guidance can be split.
        most = kv_heads * (MAX_BRANCHES if guidance else 1)
        heads = f"{kv_heads} key-value heads" + (" in each of 2 guidance branches" if guidance else "")
        advice = f"start at most {most}" + (", an even number" if guidance and processes % MAX_BRANCHES else "")
        advice = f"set cfg_size to 2, or start at most {kv_heads}" if guidance and processes <= most else advice
        raise ValueError(f"{processes} processes are too many: this model has {heads}; {advice}.")


def busy_share(processes: int, heads: int) -> float:
    """Mean share of the time of attention in which a process has heads to work on."""
    return heads / (processes * -(-heads // processes))


def describe_busy(processes: int, cfg_size: int, heads: int, kv_heads: int, guidance: bool = False) -> str | None:
    """A sentence on how busy processes are in attention; None: all are always."""
    within = processes // cfg_size
    busy = busy_share(within, kv_heads)
    if busy == 1:
        return None
    even = max(n for n in range(1, within + 1) if kv_heads % n == 0)
    advice = f"{even * cfg_size}"
    if cfg_size > 1:
        advice = f"{cfg_size} x {even}"
    elif guidance:
        half = max(n for n in range(1, max(1, processes // MAX_BRANCHES) + 1) if kv_heads % n == 0)
        advice += f", or {MAX_BRANCHES} x {half} with guidance,"
    name = f"{heads} heads" if heads == kv_heads else f"{kv_heads} key-value heads"
    verb = "are" if guidance or even != 1 else "is"
    count = f"{cfg_size} x {within}" if cfg_size > 1 else f"{within}"
    return f"{name} on {count} processes: {busy:.0%} busy; {advice} {verb} even."
