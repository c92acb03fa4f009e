"""Draws the input of a number and tries it out."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import transformers

from .command_lines import draw_command_line
from .file_inputs import draw_file_input
from .inputs import Input, generator
from .made_runs import make_runs
from .oracle import Fault
from .programs import PROGRAMS, innermost
from .python_inputs import draw_python_input
from .sandbox import Sandbox
from .workers import Overdue

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
        for program in PROGRAMS.values():
            assert program.options
        make_runs(self.sandbox)
        self.sandbox.remember()

    def wanted(self, number: int) -> bool:
        """Whether the input is of the wanted kind."""
        return self._kind in (None, self._draw_kind(number))

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

    def _draw_kind(self, number: int) -> str:
        kinds, weights = list(DRAWS), [weight for _, weight in DRAWS.values()]
        return generator(self._seed, number).choices(kinds, weights)[0]

    def _draw(self, number: int) -> Input:
        draw, _ = DRAWS[self._draw_kind(number)]
        rng = generator(self._seed, number)
        rng.random()
        return draw(rng, self.sandbox)
