"""Settings of the method, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .knobs import only_knob
from .kv.config import KVCompressionConfig, KVStorageConfig
from .limits import check_limits
from .reuse.chunkwise import ChunkwiseReuse
from .reuse.error_controlled import ErrorControlled
from .reuse.forecast import FORECASTS, Forecast
from .reuse.planned import Planned
from .reuse.policy import NoReuse, ReusePolicy
from .reuse.teacache import TeaCache

#: What a preset multiplies the square root of a chunk's number of steps by, for the interval from one
#: computed step to the next. The same interval for all would compute too much where steps are many, the same
#: number of computed steps skip nothing where they are few.
PACES = {"quality": 0.3, "balanced": 0.45, "fast": 0.75, "turbo": 1.0}

#: Presets of every model; those of the paper decide and forecast as the original does.
PRESETS = (*PACES, "paper-slow", "paper-fast")
DEFAULT_PRESET = "fast"

LIMITS = {
    "threshold": (0, 1000),
    "warmup_steps": (1, 1000),
    "final_steps": (0, 1000),
    "coefficients": (-1e12, 1e12),
    "tolerance": (0, 1000),
    "interval": (1, 1000),
    "pace": (0.001, 1000),
    "computed_steps": (0, 1000),
    "max_reuses": (1, 1000),
    "final_window_steps": (0, 1000),
    "clean_range": (0, 10**6),
}

PolicyName = Literal["none", "teacache", "chunkwise", "fixed_interval", "error_controlled", "planned"]


@dataclass(frozen=True, kw_only=True)
class FlowCacheConfig:
    """Which chunks run at a step, and what stands in for those that do not.

    Args:
        policy: ``none`` computes every live chunk; ``teacache`` takes one decision for the whole window;
            ``chunkwise`` lets every chunk decide for itself (FlowCache); ``fixed_interval`` computes all
            at every ``interval``-th step of the youngest; ``planned`` at its ``computed_steps``;
            ``error_controlled`` skips while forecasts can be trusted.
        threshold: accumulated relative-L1 distance at which a chunk is computed again; 0 never reuses.
        warmup_steps: steps at the start of a chunk (``teacache``: of the window) that are always computed.
        final_steps: steps at the end that are always computed.
        coefficients: polynomial over the distance, highest power first; None takes the distance itself.
        indicator: what the policy watches, by a name that the model knows; None takes the model's default.
        tolerance: relative error that a row of skipped steps may add (``error_controlled``).
        interval: steps from one at which all live chunks are computed to the next, counted from the start of
            the youngest (``fixed_interval``); None: by ``pace``.
        pace: the interval over the square root of a chunk's number of steps; it comes to 2 or more.
        computed_steps: of the youngest live chunk, at which all live chunks are computed (``planned``).
        max_reuses: the most steps that a chunk skips in a row (``error_controlled``); None: no bound.
        forecast: what a reused chunk gets, a key of ``FORECASTS``: the last velocity, residual of the block
            stack or displacement of the latents, or the line or parabola through the last ones.
        whole_window: run the whole window whenever the model runs, as the original models do without a
            cache. False: only live chunks run, against a KV cache.
        bidirectional: with ``whole_window``, let every chunk attend to the whole window. False: only to
            itself and the chunks before it.
        refresh_given: with a KV cache, run given chunks at every step instead of once.
        clean_pass: with a KV cache, run a chunk once more when it has become clean.
        final_window_steps: steps at the end of the whole window at which every chunk is computed.
        together: compute all live chunks when one of them starts or has reached the threshold or tolerance
            (``chunkwise``, ``error_controlled``; the other rules always do).
        compression: with a KV cache, keep only the best tokens of clean chunks; None keeps all.
        clean_range: with a KV cache, a live chunk sees this many of the newest clean chunks; None: all.
        storage: with a KV cache, keep clean chunks in fewer bits or in host memory; None: as live ones. No
            effect where all chunks move together, as none is clean before the end.

    Raises:
        ValueError: one sentence that names the argument and what it may be.
    """

    policy: PolicyName = "chunkwise"
    threshold: float = 0.15
    warmup_steps: int = 5
    final_steps: int = 1
    coefficients: tuple[float, ...] | None = None
    indicator: str | None = None
    tolerance: float = 0.01
    interval: int | None = None
    pace: float = PACES[DEFAULT_PRESET]
    computed_steps: tuple[int, ...] = ()
    max_reuses: int | None = None
    forecast: str = "hold_velocity"
    whole_window: bool = False
    bidirectional: bool = False
    refresh_given: bool = False
    clean_pass: bool = False
    final_window_steps: int = 0
    together: bool = False
    compression: KVCompressionConfig | None = None
    clean_range: int | None = None
    storage: KVStorageConfig | None = None

    def __post_init__(self) -> None:
        check_limits(self, LIMITS)
        _check_choice("forecast", self.forecast, tuple(FORECASTS))
        if self.policy == "planned" and not self.computed_steps:
            raise ValueError("computed_steps must name the steps that a plan computes.")
        if self.policy == "error_controlled" and self.forecast == "hold_displacement":
            raise ValueError("forecast must be of a velocity or a residual, for their errors to be known.")
        if self.bidirectional and not self.whole_window:
            raise ValueError(
                "bidirectional needs whole_window: a cache holds no chunk that is still to come."
            )
        if self.whole_window and (self.compression or self.clean_range is not None):
            raise ValueError("compression and clean_range need a KV cache: set whole_window to false.")
        if self.whole_window and (self.refresh_given or self.clean_pass):
            raise ValueError("refresh_given and clean_pass need a KV cache: set whole_window to false.")
        if self.compression and self.compression.within_step and self.clean_pass:
            raise ValueError(
                "clean_pass: expected false with compression within a step, got true; set it to false."
            )
        if self.whole_window and self.storage:
            raise ValueError("storage needs a KV cache: set whole_window to false.")
        if self.storage and self.refresh_given:
            raise ValueError("storage keeps given chunks from running again: set refresh_given to false.")
        if self.compression and self.refresh_given:
            raise ValueError("compression keeps given chunks from running again: set refresh_given to false.")

    def interval_for(self, num_chunk_steps: int) -> int:
        """Steps from one computed step to the next, for chunks of that many steps (``fixed_interval``)."""
        return self.interval or max(2, round(self.pace * math.sqrt(num_chunk_steps)))

    def make_policy(self, num_chunk_steps: int) -> ReusePolicy:
        """A fresh policy for chunks of that many steps."""
        if self.policy == "none":
            return NoReuse()
        bounds = {"warmup_steps": self.warmup_steps, "final_steps": self.final_steps}
        if self.policy == "teacache":
            return TeaCache(self.threshold, coefficients=self.coefficients, **bounds)
        bounds["num_chunk_steps"] = num_chunk_steps
        if self.policy == "planned":
            return Planned(self.computed_steps, **bounds)
        if self.policy == "fixed_interval":
            return Planned(range(0, num_chunk_steps, self.interval_for(num_chunk_steps)), **bounds)
        bounds["together"] = self.together
        if self.policy == "error_controlled":
            return ErrorControlled(self.tolerance, max_reuses=self.max_reuses, **bounds)
        bounds |= {"coefficients": self.coefficients, "final_window_steps": self.final_window_steps}
        return ChunkwiseReuse(self.threshold, **bounds)

    def make_forecast(self) -> Forecast:
        """A fresh forecast."""
        return FORECASTS[self.forecast]()

    def as_dict(self, num_chunk_steps: int | None = None) -> dict[str, Any]:
        """Fields by name, for logs and traces; with the interval that chunks of so many steps have."""
        fields = asdict(self) | {"compression": self.compression and self.compression.as_dict()}
        if self.policy == "fixed_interval" and num_chunk_steps is not None:
            fields["interval"] = self.interval_for(num_chunk_steps)
        return fields


#: The rule that a knob is of.
_RULES: dict[str, PolicyName] = {
    "threshold": "chunkwise",
    "interval": "fixed_interval",
    "tolerance": "error_controlled",
    "computed_steps": "planned",
}


def rule_of(**knobs: float | tuple[int, ...] | None) -> dict[str, Any]:
    """Fields of ``FlowCacheConfig`` for the rule whose knob is given; none if all knobs are None.

    Args:
        knobs: ``threshold``, ``interval``, ``tolerance``, ``computed_steps``; see ``FlowCacheConfig``.

    Raises:
        ValueError: several knobs are given.
    """
    name = only_knob(knobs)
    return {} if name is None else {name: knobs[name], "policy": _RULES[name]}


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
