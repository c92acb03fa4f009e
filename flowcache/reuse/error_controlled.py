"""Skip the model while the forecast can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .forecast import Forecast
from .policy import COMPUTE, Decision, ReusePolicy, computed_together


class ErrorControlled(ReusePolicy):
    """Skip a chunk while the error that its forecasts are expected to bring stays below a tolerance.

    Denoising a chunk is an ODE that is solved with some evaluations skipped. Whenever the model does run, the
    difference to what would have been forecast is known for free; divided by the spread of the times
    (``Forecast.spread``) it says how fast the velocity bends, and times the spread of a step to come how
    wrong the next forecast will be. Weighted with the length of the step, that is the error it adds to the
    latents. It is summed over the steps that are skipped in a row.

    Args:
        tolerance: relative error that a row of skipped steps may add: 0.01 is a hundredth of the way from
            noise to a clean chunk. 0 never reuses.
        num_chunk_steps: local steps of every chunk.
        warmup_steps: local steps at the start that are always computed; early errors decide the content.
        final_steps: local steps at the end that are always computed.
        max_reuses: the most steps that are skipped in a row.
        together: compute all live chunks when one of them starts or has spent the tolerance. A chunk of which
            too little is known to judge it follows the others.
    """

    needs_errors = True

    def __init__(
        self,
        tolerance: float,
        num_chunk_steps: int,
        warmup_steps: int = 1,
        final_steps: int = 1,
        max_reuses: int | None = None,
        together: bool = False,
    ) -> None:
        self.tolerance = tolerance
        self.warmup_steps, self.reuse_end = warmup_steps, num_chunk_steps - final_steps
        self.max_reuses = max_reuses or num_chunk_steps
        self.together = together

    def begin(self, times: Sequence[float], forecast: Forecast) -> None:
        self._times, self._forecast = times, forecast
        self._bend: dict[int, float] = {}
        self._spent: dict[int, float] = {}
        self._row: dict[int, int] = {}

    def decide(self, step, num_steps, live, indicators):
        self._learn_errors()
        follows = self.together and any(chunk in self._bend for chunk in live)
        decisions = {chunk: self._judge(chunk, local_step, follows) for chunk, local_step in live.items()}
        if self.together:
            decisions = computed_together(decisions, live)
        for chunk, decision in decisions.items():
            self._spent[chunk] = (decision.accumulated or 0.0) if decision.reuse else 0.0
            self._row[chunk] = self._row.get(chunk, 0) + 1 if decision.reuse else 0
        return decisions

    def forget(self, chunk: int) -> None:
        for state in (self._bend, self._spent, self._row):
            state.pop(chunk, None)

    def state_dict(self):
        return {"bend": dict(self._bend), "spent": dict(self._spent), "row": dict(self._row)}

    def load_state_dict(self, state):
        self._bend, self._spent, self._row = (dict(state[name]) for name in ("bend", "spent", "row"))

    def _learn_errors(self) -> None:
        errors = self._forecast.pop_errors()
        if not errors:
            return
        values = torch.stack([error.value for error in errors.values()]).tolist()
        for (chunk, error), value in zip(errors.items(), values, strict=True):
            self._bend[chunk] = value / error.spread

    def _judge(self, chunk: int, local_step: int, follows: bool) -> Decision:
        if not self.warmup_steps <= local_step < self.reuse_end:
            return COMPUTE
        if chunk not in self._bend:
            return Decision(reuse=follows)
        expected = self._bend[chunk] * self._forecast.spread(chunk, local_step)
        added = expected * abs(self._times[local_step + 1] - self._times[local_step])
        spent = self._spent[chunk] + added
        reuse = spent < self.tolerance and self._row[chunk] < self.max_reuses
        return Decision(reuse, expected, spent)
