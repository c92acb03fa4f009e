"""What an input is: something to run, the words that show it, and the faults that it brought to light."""

from __future__ import annotations

from random import Random
from typing import Protocol

from .oracle import Fault
from .sandbox import Sandbox


class Input(Protocol):
    """One input, drawn from a seed."""

    kind: str

    def describe(self) -> str:
        """As a user would type it; ``@`` stands for the folder of good files."""

    def run(self, sandbox: Sandbox) -> list[Fault]:
        """Try it out, in an empty working folder."""


def generator(seed: int, number: int) -> Random:
    """The random numbers of one input."""
    return Random(f"{seed} {number}")
