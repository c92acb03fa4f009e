"""Settings of the method, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .reuse.chunkwise import ChunkwiseReuse
from .reuse.forecast import FORECASTS, Forecast
from .reuse.policy import NoReuse, ReusePolicy
from .reuse.teacache import TeaCache

PolicyName = Literal["none", "teacache", "chunkwise"]
ForecastName = Literal["hold_residual", "hold_displacement", "hold_velocity"]


@dataclass(frozen=True, kw_only=True)
class FlowCacheConfig:
    """Which chunks run at a step, and what stands in for those that do not.

    Args:
        policy: ``none`` computes every live chunk; ``teacache`` takes one decision for the whole window;
            ``chunkwise`` lets every chunk decide for itself (FlowCache).
        threshold: accumulated relative-L1 distance at which a chunk is computed again; 0 never reuses.
        warmup_steps: steps at the start of a chunk (``teacache``: of the window) that are always computed.
        final_steps: steps at the end that are always computed.
        coefficients: polynomial over the distance, highest power first; None takes the distance itself.
        indicator: what the policy watches, by a name that the model knows; None takes the model's default.
        forecast: what a reused chunk gets: the block stack's last residual, the last displacement of the
            latents or the last velocity.
        whole_window: run the whole window whenever the model runs, as the original models do without a
            cache. False: only live chunks run, against a KV cache.
        bidirectional: with ``whole_window``, let every chunk attend to the whole window. False: only to
            itself and the chunks before it.
        refresh_given: with a KV cache, run given chunks at every step instead of once.
        clean_pass: with a KV cache, run a chunk once more when it has become clean.
        final_window_steps: steps at the end of the whole window at which every chunk is computed.
        join_at: share of the threshold from which a chunk is computed whenever another one is; 1: never.

    Raises:
        ValueError: one sentence that names the argument and what it may be.
    """

    policy: PolicyName = "chunkwise"
    threshold: float = 0.15
    warmup_steps: int = 5
    final_steps: int = 1
    coefficients: tuple[float, ...] | None = None
    indicator: str | None = None
    forecast: ForecastName = "hold_velocity"
    whole_window: bool = False
    bidirectional: bool = False
    refresh_given: bool = False
    clean_pass: bool = False
    final_window_steps: int = 0
    join_at: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("policy", self.policy, get_args(PolicyName))
        _check_choice("forecast", self.forecast, tuple(FORECASTS))
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"threshold must be a finite number of at least 0, got {self.threshold}.")
        if self.bidirectional and not self.whole_window:
            raise ValueError(
                "bidirectional needs whole_window: a cache holds no chunk that is still to come."
            )
        if self.warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1, got {self.warmup_steps}.")
        for name in ("final_steps", "final_window_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 < self.join_at <= 1:
            raise ValueError(f"join_at must be above 0 and at most 1, got {self.join_at}.")
        if self.coefficients is not None and not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"coefficients must be finite numbers, got {self.coefficients}.")

    def make_policy(self, num_chunk_steps: int) -> ReusePolicy:
        """A fresh policy for chunks of that many steps."""
        if self.policy == "none":
            return NoReuse()
        bounds = {"warmup_steps": self.warmup_steps, "final_steps": self.final_steps}
        if self.policy == "teacache":
            return TeaCache(self.threshold, coefficients=self.coefficients, **bounds)
        bounds |= {"final_window_steps": self.final_window_steps, "join_at": self.join_at}
        return ChunkwiseReuse(self.threshold, num_chunk_steps, coefficients=self.coefficients, **bounds)

    def make_forecast(self) -> Forecast:
        """A fresh forecast."""
        return FORECASTS[self.forecast]()

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, for logs and traces."""
        return asdict(self)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
