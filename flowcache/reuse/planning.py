"""Plans of the steps to compute, made from one run that computes them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .forecast import VelocityForecast, lagrange_weights, within_reach

Array = NDArray[np.float64]


class PathRecorder(VelocityForecast):
    """Takes note of all velocities of a run that reuses none, as inner products.

    ``gram[i, j]`` is the inner product of the velocities of steps i and j, per element of the latents, in the
    mean over chunks; from it the error of any forecast from any steps can be told.
    """

    def begin(self, times: Sequence[float], with_errors: bool = False) -> None:
        super().begin(times, with_errors)
        self._paths: dict[int, list[Tensor]] = {}
        self._grams: list[Tensor] = []

    @property
    def times(self) -> Sequence[float]:
        """Of the starts of the steps and, last, of the end."""
        return self._times

    @property
    def gram(self) -> Array:
        """``[steps, steps]``."""
        return torch.stack(self._grams).mean(0).double().cpu().numpy()

    def observe_evaluation(self, inputs, tokens, outputs, velocities):
        for item, velocity in zip(inputs, velocities, strict=True):
            self._paths.setdefault(item.chunk, []).append(velocity.flatten().float())

    def forget(self, chunk: int) -> None:
        path = torch.stack(self._paths.pop(chunk))
        self._grams.append(path @ path.T / path.shape[1])


def plan_steps(
    times: Sequence[float],
    gram: Array,
    num_computed: int,
    order: int = 1,
    amplification: Sequence[float] | None = None,
    warmup_steps: int = 1,
    final_steps: int = 1,
) -> list[int]:
    """Choose the steps to compute so that the forecasts of the others do least harm.

    The harm of a row of skipped steps is the squared displacement by which its forecasts lead astray, times
    the amplification of its first step; rows add up. Dynamic programming over the last two computed steps
    finds the least for any number of computed steps.

    Args:
        times: of the starts of a chunk's steps and, last, of its end.
        gram: inner products of the velocities, ``[steps, steps]``; see ``PathRecorder``.
        num_computed: steps to compute.
        order: of the forecast: 0 or 1.
        amplification: by which an error made at a step has grown, squared, at the end; None: all alike.
        warmup_steps, final_steps: steps at both ends that are always computed.

    Returns:
        The steps to compute, rising from 0.

    Raises:
        ValueError: too few or too many steps are to be computed, or the order is another.
    """
    count = len(gram)
    least = warmup_steps + final_steps
    if order not in (0, 1):
        raise ValueError(f"order must be 0 or 1 for a plan, got {order}.")
    if not max(2, least) <= num_computed <= count:
        raise ValueError(f"num_computed must lie in {max(2, least)}..{count}, got {num_computed}.")
    weights = np.ones(count) if amplification is None else np.asarray(amplification, dtype=np.float64)
    harm = _all_harms(times, gram, order, weights)
    _forbid_gaps(harm, warmup_steps, final_steps)
    return _cheapest(harm, num_computed)


def measure_amplification(
    times: Sequence[float], gram: Array, final: Tensor, final_without: Callable[[int], Tensor], order: int = 1
) -> Array:
    """By how much the squared error made at each step has grown at the end, ``[steps]``.

    Every step but the first and the last is skipped once, alone. What comes of it, over the harm that
    ``plan_steps`` counts for it, is noisy where the harm is slight: of neighbouring steps, five at a time,
    the median is taken. It covers all that follows from a skipped step, the stale keys and values that other
    chunks see as well.

    Args:
        times: of the starts of a chunk's steps and, last, of its end.
        gram: see ``PathRecorder``.
        final: latents of a run that skips nothing.
        final_without: latents of the same run but for one step of every chunk, which is given.
        order: of the forecast.
    """
    count = len(gram)
    growth = np.zeros(count)
    for step in range(1, count - 1):
        harm = harm_of(times, gram, [k for k in range(count) if k != step], order)
        error = float((final_without(step) - final).square().mean())
        growth[step] = error / max(harm, np.finfo(np.float32).tiny)
    growth[0], growth[-1] = growth[1], growth[-2]
    around = np.lib.stride_tricks.sliding_window_view(np.pad(growth, 2, mode="edge"), 5)
    return np.median(around, axis=1)


def harm_of(
    times: Sequence[float],
    gram: Array,
    computed: Sequence[int],
    order: int = 1,
    amplification: Sequence[float] | None = None,
) -> float:
    """Harm of a plan, as ``plan_steps`` counts it."""
    weights = np.ones(len(gram)) if amplification is None else np.asarray(amplification, dtype=np.float64)
    harm = _all_harms(times, gram, order, weights)
    steps = [-1, *computed, len(gram)]
    return float(sum(harm[a + 1, b, c] for a, b, c in zip(steps, steps[1:], steps[2:], strict=False)))


def _all_harms(times: Sequence[float], gram: Array, order: int, weights: Array) -> Array:
    """``harm[a + 1, b, c]`` of skipping all between b and c, when a and b were computed last.

    a = -1: only b was.
    """
    count = len(gram)
    harm = np.full((count + 1, count, count + 1), np.inf)
    for b in range(count):
        for a in range(-1 if b == 0 else 0, b):
            lead = np.zeros(count)
            known = [b] if a < 0 or order == 0 else [a, b]
            harm[a + 1, b, b + 1] = 0.0
            for skipped in range(b + 1, count):
                step = times[skipped + 1] - times[skipped]
                lead[skipped] += step
                for at, weight in zip(known, _forecast(times, known, skipped), strict=True):
                    lead[at] -= step * weight
                harm[a + 1, b, skipped + 1] = weights[b + 1] * max(0.0, lead @ gram @ lead)
    return harm


def _forecast(times: Sequence[float], known: Sequence[int], step: int) -> list[float]:
    if len(known) == 1:
        return [1.0]
    at = [times[k] for k in known]
    return lagrange_weights(at, within_reach(at, times[step]))


def _forbid_gaps(harm: Array, warmup_steps: int, final_steps: int) -> None:
    count = harm.shape[1]
    for b in range(count):
        for c in range(b + 2, count + 1):
            if b + 1 < warmup_steps or c > count - final_steps:
                harm[:, b, c] = np.inf


def _cheapest(harm: Array, num_computed: int) -> list[int]:
    """The path of least harm that computes that many steps; step 0 is the first of them."""
    count = harm.shape[1]
    # cost[a + 1, b] of having computed so many steps, the last two of them a and b
    cost = np.full((count + 1, count), np.inf)
    cost[0, 0] = 0.0
    origins = []
    for _ in range(num_computed - 1):
        reached = cost[:, :, None] + harm[:, :, :count]
        origins.append(reached.argmin(axis=0))
        cost = np.full_like(cost, np.inf)
        cost[1:] = reached.min(axis=0)
    ends = cost + harm[:, :, count]
    a, b = np.unravel_index(ends.argmin(), ends.shape)
    steps = [int(b)]
    before = int(a) - 1
    for origin in reversed(origins):
        steps.append(before)
        before = int(origin[before, steps[-2]]) - 1
    return steps[::-1]
