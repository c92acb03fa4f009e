"""UniPC for chunks that stand at different steps."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..state import State

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
    """UniPC (order 2, with corrector) on the noise grid of these models, with a history per chunk.

    A staircase would need a copy of diffusers' scheduler for every chunk, and all would compute the same
    scalars. Here they are a table, and a step is two weighted sums (Zhao et al., "UniPC", 2023, equations 3
    and 5 with B(h) = exp(h) - 1, predicting the clean latents).

    Args:
        shift: flow shift; 8 for text-to-video, 5 for image-to-video in the original.
        first_correction_as_original: correct the first step from its end instead of its start: the original
            (and diffusers) overwrites the latents that its solver still refers to. False follows the paper.
    """

    def __init__(self, num_steps: int, shift: float, first_correction_as_original: bool = True) -> None:
        self.times = sigmas = noise_grid(num_steps, shift)
        self._timesteps = [int(1000 * sigma) for sigma in sigmas[:-1]]
        self._first_correction_as_original = first_correction_as_original
        self._histories: dict[int, _History] = {}
        # Weights by step, then by order; the first and the last step have the first order only.
        self._predictor: list[list[_Weights]] = []
        self._corrector: list[list[_Weights]] = []
        log_snr = [math.log(1 - s) - math.log(s) if s > 0 else math.inf for s in sigmas]
        for step, (before, after) in enumerate(pairwise(sigmas)):
            length = log_snr[step + 1] - log_snr[step]
            noise, growth = after / before, (after - 1) * math.expm1(-length)
            self._predictor.append([(noise, growth, 0.0, 0.0)])
            self._corrector.append([(noise, 0.5 * growth, 0.0, 0.5 * growth)])
            if 0 < step < num_steps - 1:
                ratio = (log_snr[step - 1] - log_snr[step]) / length
                slope = 0.5 * growth / ratio
                self._predictor[step].append((noise, growth - slope, slope, 0.0))
                past, now = _corrector_shares(length, ratio)
                slope = growth * past / ratio
                self._corrector[step].append((noise, growth * (1 - now) - slope, slope, growth * now))

    def timestep(self, local_step: int, chunk: int = 0) -> float:
        return self._timesteps[local_step]

    def step(self, chunk: int, local_step: int, latents: Tensor, velocity: Tensor) -> Tensor:
        """Correct the last step by the model's new output, then predict the next latents."""
        clean = torch.sub(latents, velocity, alpha=self.times[local_step])
        history, corrected = self._histories.get(chunk), latents.clone()
        if history is not None:
            weights = self._corrector[local_step - 1][history.order - 1]
            corrected = _weighted_sum(weights, history.latents, history.clean, history.earlier_clean, clean)
        order = min(1 if history is None else 2, len(self._timesteps) - local_step)
        weights = self._predictor[local_step][order - 1]
        predicted = _weighted_sum(weights, corrected, clean, history.clean if order == 2 else None)
        if history is None and self._first_correction_as_original:
            corrected = predicted
        self._histories[chunk] = _History(corrected, clean, history.clean if history else None, order)
        return predicted

    def skip(self, chunk: int) -> None:
        """Drop the history of a chunk; it starts again at first order, without the corrector."""
        self._histories.pop(chunk, None)

    forget = skip

    def history(self, chunk: int) -> State | None:
        known = self._histories.get(chunk)
        return None if known is None else dict(vars(known))

    def restore(self, chunk: int, history: State | None) -> None:
        self.forget(chunk)
        if history is not None:
            self._histories[chunk] = _History(**history)

    def state_dict(self) -> State:
        return {"histories": {chunk: self.history(chunk) for chunk in self._histories}}

    def load_state_dict(self, state: State) -> None:
        self._histories = {chunk: _History(**history) for chunk, history in state["histories"].items()}


def _weighted_sum(weights: _Weights, first: Tensor, *others: Tensor | None) -> Tensor:
    total = weights[0] * first
    for weight, each in zip(weights[1:], others, strict=False):
        if weight:
            total.add_(each, alpha=weight)
    return total


def noise_grid(num_steps: int, shift: float) -> list[float]:
    """Noise levels at the starts of the steps and, last, 0; rounded to fp32 as in the original.

    The model's clock shows ``trunc(1000 level)``. Diffusers' own default grid ends elsewhere.
    """
    unshifted = torch.linspace(0.999, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
    shifted = shift * unshifted / (1 + (shift - 1) * unshifted)
    return [*shifted.float().tolist(), 0.0]


def _corrector_shares(length: float, ratio: float) -> tuple[float, float]:
    """Shares of the past and the present difference in the second-order corrector (UniPC, appendix)."""
    base = math.expm1(-length)
    phi_2 = base / -length - 1
    first, second = phi_2 / base, 2 * (phi_2 / -length - 0.5) / base
    # Solves past + now = first, ratio * past + now = second.
    past = (second - first) / (ratio - 1)
    return past, first - past
