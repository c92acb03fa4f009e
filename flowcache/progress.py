"""How far the loop has come in a window."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from .state import State, on_device


class _Stateful(Protocol):
    """A part of the loop that remembers something from step to step."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass
class Progress:
    """How far a window has come.

    Attributes:
        parts: all that remembers something, by name.
        steps: that were taken.
        clean: chunks that the last of them made clean and that are still to be yielded.
    """

    parts: dict[str, _Stateful]
    steps: int = 0
    clean: list[int] = field(default_factory=list)

    def state_dict(self) -> State:
        own = {"steps": self.steps, "clean": list(self.clean)}
        return own | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: State, device: torch.device | str) -> None:
        self.steps, self.clean = state["steps"], list(state["clean"])
        for name, part in self.parts.items():
            # The cache, by far the largest, has memory of its own that it copies to.
            part.load_state_dict(state[name] if name == "cache" else on_device(state[name], device))
