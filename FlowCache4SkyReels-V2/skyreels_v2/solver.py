"""UniPC for chunks that stand at different steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.state import State

# Weights of the latents, of the clean prediction, of the one before it and, in the corrector, of the
# prediction at the end of the step.
_Weights = tuple[float, float, float, float]


@dataclass
class _History:
    """Last corrected latents of a chunk, and its last two predictions of clean latents."""

    latents: Tensor
    clean: Tensor
    earlier_clean: Tensor | None = None
    order: int = 1


class ChunkUniPC:
    """UniPC (order 2, with corrector) on the noise grid of SkyReels-V2, with a history per chunk.

    A staircase would need a copy of diffusers' scheduler for every chunk, and all would compute the same
    scalars. Here they are a table, and a step is two weighted sums (Zhao et al., "UniPC", 2023, equations 3
    and 5 with B(h) = exp(h) - 1, predicting the clean latents).

    Args:
        num_steps: steps of every chunk.
        shift: flow shift; 8 for text-to-video, 5 for image-to-video in the original.
        first_correction_as_original: correct the first step from its end instead of its start: the original
            (and diffusers) overwrites the latents that its solver still refers to. False follows the paper.
    """

    def __init__(self, num_steps: int, shift: float, first_correction_as_original: bool = True) -> None:
        sigmas = noise_grid(num_steps, shift)
        self._timesteps = [int(1000 * sigma) for sigma in sigmas[:-1]]
        self.times = sigmas
        log_snr = [math.log(1 - s) - math.log(s) if s > 0 else math.inf for s in sigmas]
        self._predictor = {order: self._table(_predictor, log_snr, order) for order in (1, 2)}
        self._corrector = {order: self._table(_corrector, log_snr, order) for order in (1, 2)}
        self._first_correction_as_original = first_correction_as_original
        self._histories: dict[int, _History] = {}

    def timestep(self, local_step: int) -> float:
        return self._timesteps[local_step]

    def step(self, chunk: int, local_step: int, latents: Tensor, velocity: Tensor) -> Tensor:
        """Correct the last step by the model's new output, then predict the next latents."""
        clean = latents - self.times[local_step] * velocity
        history = self._histories.get(chunk)
        if history is None:
            corrected, known = latents.clone(), 1
        else:
            corrected = self._correct(history, local_step, clean)
            known = 2
        order = min(known, len(self._timesteps) - local_step)
        weights = self._predictor[order][local_step]
        predicted = weights[0] * corrected + weights[1] * clean
        if order == 2:
            predicted = predicted + weights[2] * history.clean
        if history is None and self._first_correction_as_original:
            corrected = predicted
        self._histories[chunk] = _History(corrected, clean, history.clean if history else None, order)
        return predicted

    def skip(self, chunk: int) -> None:
        """Drop the history of a chunk; it starts again at first order, without the corrector."""
        self._histories.pop(chunk, None)

    forget = skip

    def state_dict(self) -> State:
        return {"histories": {chunk: dict(vars(history)) for chunk, history in self._histories.items()}}

    def load_state_dict(self, state: State) -> None:
        self._histories = {chunk: _History(**history) for chunk, history in state["histories"].items()}

    def _correct(self, history: _History, local_step: int, clean: Tensor) -> Tensor:
        weights = self._corrector[history.order][local_step - 1]
        corrected = weights[0] * history.latents + weights[1] * history.clean + weights[3] * clean
        if history.order == 2:
            corrected = corrected + weights[2] * history.earlier_clean
        return corrected

    def _table(
        self, rule: Callable[..., _Weights], log_snr: list[float], order: int
    ) -> list[_Weights | None]:
        """Weights for each step; None for second order at the first and the last."""
        last = len(self._timesteps) - 1
        return [
            rule(*_step_size(self.times, log_snr, i, order)) if order == 1 or 0 < i < last else None
            for i in range(last + 1)
        ]


def noise_grid(num_steps: int, shift: float) -> list[float]:
    """Noise levels at the starts of the steps and, last, 0; rounded to fp32 as in the original.

    The model's clock shows ``trunc(1000 level)``. Diffusers' own default grid ends elsewhere.
    """
    unshifted = torch.linspace(0.999, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
    shifted = shift * unshifted / (1 + (shift - 1) * unshifted)
    return [*shifted.float().tolist(), 0.0]


def _step_size(
    sigmas: list[float], log_snr: list[float], step: int, order: int
) -> tuple[float, float, float, float | None]:
    """A step's noise ratio, signal at its end, length in log-SNR, and relative length of the one before."""
    length = log_snr[step + 1] - log_snr[step]
    ratio = (log_snr[step - 1] - log_snr[step]) / length if order == 2 else None
    return sigmas[step + 1] / sigmas[step], 1 - sigmas[step + 1], length, ratio


def _predictor(noise_ratio: float, signal: float, length: float, ratio: float | None) -> _Weights:
    growth = -signal * math.expm1(-length)
    if ratio is None:
        return noise_ratio, growth, 0.0, 0.0
    slope = 0.5 * growth / ratio
    return noise_ratio, growth - slope, slope, 0.0


def _corrector(noise_ratio: float, signal: float, length: float, ratio: float | None) -> _Weights:
    growth = -signal * math.expm1(-length)
    if ratio is None:
        return noise_ratio, 0.5 * growth, 0.0, 0.5 * growth
    # Shares of the past and the present difference (UniPC, appendix): past + now = first and
    # ratio * past + now = second.
    base = math.expm1(-length)
    phi_2 = base / -length - 1
    first, second = phi_2 / base, 2 * (phi_2 / -length - 0.5) / base
    past = (second - first) / (ratio - 1)
    now, slope = first - past, growth * past / ratio
    return noise_ratio, growth * (1 - now) - slope, slope, growth * now
