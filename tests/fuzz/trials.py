"""Draws the input of a number and tries it out."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Protocol

import torch
import transformers

from .command_lines import draw_command_line
from .file_inputs import draw_file_input
from .made_runs import make_runs
from .oracle import Fault
from .programs import innermost
from .python_inputs import draw_python_input
from .sandbox import Sandbox
from .workers import Overdue


class Input(Protocol):
    """One input."""

    kind: str

    def describe(self) -> str:
        """As a user would type it; ``@`` stands for the folder of good files."""

    def run(self, sandbox: Sandbox) -> list[Fault]:
        """Try it out, in an empty working folder; returns the faults."""


#: What draws the inputs, and how often.
DRAWS = {
    "command line": (draw_command_line, 5),
    "file": (draw_file_input, 3),
    "Python": (draw_python_input, 2),
}


class Trials:
    """Inputs by number.

    Args:
        root: of the sandbox; made here.
        seed: of all of them.
        kind: the only one that is wanted; None: all.
    """

    def __init__(self, root: Path, seed: int, kind: str | None = None) -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        transformers.utils.logging.disable_progress_bar()
        self._seed, self._kind = seed, kind
        root.parent.mkdir(exist_ok=True)
        self.sandbox = Sandbox(root)
        make_runs(self.sandbox)
        self.sandbox.remember()

    def wanted(self, number: int) -> bool:
        """Whether the input is of the wanted kind."""
        return self._kind in (None, _draw_kind(self._random(number)))

    def describe(self, number: int) -> tuple[str, str]:
        """Kind and words of an input."""
        drawn = self._draw(number)
        return drawn.kind, self.sandbox.shown(drawn.describe())

    def run(self, number: int) -> tuple[str, str, list[Fault]]:
        """Try out an input; returns kind, words and faults."""
        drawn = self._draw(number)
        shown = self.sandbox.shown(drawn.describe())
        try:
            faults = drawn.run(self.sandbox)
        except Overdue as error:
            faults = [Fault("hang", innermost(error), "it took too long")]
        os.chdir(self.sandbox.root)
        return drawn.kind, shown, faults

    def _draw(self, number: int) -> Input:
        rng = self._random(number)
        draw, _ = DRAWS[_draw_kind(rng)]
        return draw(rng, self.sandbox)

    def _random(self, number: int) -> Random:
        """The random numbers of one input."""
        return Random(f"{self._seed} {number}")


def _draw_kind(rng: Random) -> str:
    return rng.choices(list(DRAWS), [weight for _, weight in DRAWS.values()])[0]
