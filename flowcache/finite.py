"""Detection of NaN and infinity without waiting for the device at every step."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .parallel.group import Group
from .quantize import plain_parts

CAUSES = (
    "check guidance_scale and the other scales, the dtype (bf16 and fp16 overflow), and the weight files "
    "(damaged ones hold NaN)"
)


class NotFiniteError(ArithmeticError):
    """A tensor of a run holds NaN or infinity; the message names it and the likely causes."""


class FiniteWatch:
    """Records on the device whether tensors are finite, until the host waits for the device anyway.

    ``group``: processes that share a run; what one of them sees ends all.
    """

    def __init__(self, group: Group | None = None) -> None:
        self._sums: list[tuple[str, Tensor]] = []
        self._group = group or Group()

    def observe(self, name: str, values: Tensor) -> None:
        """Record whether ``values`` are finite; the host does not wait."""
        # A sum is finite only if all terms are; it is the cheapest reduction that shows it.
        self._sums.append((name, values.sum(dtype=torch.float32)))

    def check(self, causes: str = CAUSES) -> None:
        """Transfer all records to the host; NotFiniteError names the first tensor that is not finite, and causes."""
        sums, self._sums = self._sums, []
        values = self._group.sum(torch.stack([value for _, value in sums])).tolist() if sums else ()
        for (name, _), value in zip(sums, values, strict=True):
            if not math.isfinite(value):
                raise NotFiniteError(f"{name}: expected finite numbers, got NaN or infinity; {causes}.")


def check_finite(name: str, values: Tensor) -> Tensor:
    """Return ``values``, or raise NotFiniteError; the host waits for them."""
    watch = FiniteWatch()
    watch.observe(name, values)
    watch.check()
    return values


def check_finite_weights(components: Mapping[str, Any]) -> None:
    """Refuse parts of a pipeline with weights that are not finite (NotFiniteError names the weight).

    Attention and gates may hide them from later checks. Parts that are not modules are skipped.
    """
    for part, module in components.items():
        if isinstance(module, nn.Module):
            watch = FiniteWatch()
            for name, tensor in chain(module.named_parameters(), module.named_buffers()):
                for held in plain_parts(tensor):  # scales show what was not finite before quantisation
                    if held.is_floating_point() and held.itemsize > 1 and not held.is_meta:
                        watch.observe(f"{part}: {name}", held)
            watch.check("the weight file is damaged, get it again")
