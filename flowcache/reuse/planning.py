"""Plans of the steps to compute, made from one run that computes them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .forecast import VelocityForecast, lagrange_weights, within_reach
from .planned import computed_share, steps_in_staircase

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
    share: float,
    stride: int,
    order: int = 1,
    amplification: Sequence[float] | None = None,
) -> list[int]:
    """Choose the steps to compute together so that the forecasts of the others do least harm.

    The harm of a row of skipped steps is the squared displacement by which its forecasts lead astray, times
    the amplification of its first step; rows add up, and so do the chunks of a staircase. Starting from the
    best of the even intervals, single steps are exchanged as long as that helps; a better plan may exist. A
    chunk that starts is always computed, and all others with it.

    Args:
        times: of the starts of a chunk's steps and, last, of its end.
        gram: inner products of the velocities, ``[steps, steps]``; see ``PathRecorder``.
        share: of the chunk steps that may be computed, above 0 and at most 1.
        stride: steps by which a chunk lags behind the one before it.
        order: of the forecast: 0 or 1.
        amplification: by which an error made at a step has grown, squared, at the end; None: all alike.

    Returns:
        Steps of the youngest live chunk at which all live chunks are computed, rising from 0; see
        ``Planned``.

    Raises:
        ValueError: the share is too small for any plan or no share, or the order is another.
    """
    count = len(gram)
    if order not in (0, 1):
        raise ValueError(f"order must be 0 or 1 for a plan, got {order}.")
    search = _Search(count, stride, share, all_harms(times, gram, order, amplification))
    even = [frozenset(range(0, count, gap)) for gap in range(1, count + 1)]
    starts = [plan for plan in even if search.affords(plan)]
    if not 0 < share <= 1 or not starts:
        raise ValueError(f"share must be at most 1 and leave room for a step of every chunk, got {share}.")
    best = search.filled(min(starts, key=search.harm))
    while True:
        others = [search.filled(best - {step}) for step in best if step > 0]
        other = min(others, key=search.harm, default=best)
        if search.harm(other) >= search.harm(best):
            return sorted(best)
        best = other


class _Search:
    """What a plan costs and harms, and what can be added to it."""

    def __init__(self, count: int, stride: int, share: float, harms: Array) -> None:
        self._count, self._stride, self._share, self._harms = count, stride, share, harms
        self.harm = cache(self._harm)

    def affords(self, plan: frozenset[int]) -> bool:
        return computed_share(plan, self._count, self._stride) <= self._share

    def filled(self, plan: frozenset[int]) -> frozenset[int]:
        """The plan with the steps that help most, one after the other, as many as can be afforded."""
        while True:
            more = [plan | {step} for step in range(self._count) if step not in plan]
            best = min(filter(self.affords, more), key=self.harm, default=plan)
            if self.harm(best) >= self.harm(plan):
                return plan
            plan = best

    def _harm(self, plan: frozenset[int]) -> float:
        rows = steps_in_staircase(plan, self._count, self._stride)
        return sum(harm_of(self._harms, row) for row in rows)


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
        final_without: latents of the same run but for one of every chunk's own steps, which is given.
        order: of the forecast.
    """
    count, harms = len(gram), all_harms(times, gram, order)
    growth = np.zeros(count)
    for step in range(1, count - 1):
        harm = harm_of(harms, [k for k in range(count) if k != step])
        error = float((final_without(step) - final).square().mean())
        growth[step] = error / max(harm, np.finfo(np.float32).tiny)
    growth[0], growth[-1] = growth[1], growth[-2]
    around = np.lib.stride_tricks.sliding_window_view(np.pad(growth, 2, mode="edge"), 5)
    return np.median(around, axis=1)


def harm_of(harms: Array, computed: Sequence[int]) -> float:
    """Harm of computing a chunk at these steps, which rise from 0, by ``all_harms``."""
    steps = [-1, *computed, harms.shape[1]]
    return float(sum(harms[a + 1, b, c] for a, b, c in zip(steps, steps[1:], steps[2:], strict=False)))


def all_harms(
    times: Sequence[float], gram: Array, order: int = 1, amplification: Sequence[float] | None = None
) -> Array:
    """``harms[a + 1, b, c]`` of skipping all between b and c, when a and b were computed last.

    a = -1: only b was. See ``plan_steps`` for the rest.
    """
    count = len(gram)
    weights = np.ones(count) if amplification is None else np.asarray(amplification, dtype=np.float64)
    harms = np.full((count + 1, count, count + 1), np.inf)
    for b in range(count):
        for a in range(-1 if b == 0 else 0, b):
            lead = np.zeros(count)
            known = [b] if a < 0 or order == 0 else [a, b]
            harms[a + 1, b, b + 1] = 0.0
            for skipped in range(b + 1, count):
                step = times[skipped + 1] - times[skipped]
                lead[skipped] += step
                for at, weight in zip(known, _forecast(times, known, skipped), strict=True):
                    lead[at] -= step * weight
                harms[a + 1, b, skipped + 1] = weights[b + 1] * max(0.0, lead @ gram @ lead)
    return harms


def _forecast(times: Sequence[float], known: Sequence[int], step: int) -> list[float]:
    if len(known) == 1:
        return [1.0]
    at = [times[k] for k in known]
    return lagrange_weights(at, within_reach(at, times[step]))
