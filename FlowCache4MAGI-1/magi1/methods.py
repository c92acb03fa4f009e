"""The ways to run MAGI-1, as settings of the cache."""

from __future__ import annotations

from typing import Any

from flowcache import FlowCacheConfig
from flowcache.config import DEFAULT_PRESET, PACES, PRESETS, KVCompressionConfig, KVStorageConfig, rule_of
from flowcache.knobs import check_knobs
from flowcache.kv.original import OriginalCompression

from .config import FlowCacheOptions

METHODS = ("vanilla", "teacache", "flowcache")
#: Fields of ``FlowCacheConfig`` that this model lacks, with the reason.
_LACKING = {
    "whole_window": "MAGI-1 always runs against a KV cache",
    "bidirectional": "MAGI-1 always attends to the past",
    "refresh_given": "MAGI-1 runs given chunks once",
    "clean_range": "set noise2clean_kvrange in the configuration",
}
#: The slow one is ours, half of the original's, and not tuned on the official weights.
THRESHOLDS = {"paper-slow": 0.005, "paper-fast": 0.01}
#: Steps at the start that are all computed, as the original does.
WARMUP_STEPS = 5


def method_config(
    method: str,
    options: FlowCacheOptions | None = None,
    *,
    preset: str = DEFAULT_PRESET,
    forecast: str | None = None,
    computed_steps: tuple[int, ...] | None = None,
    kv_offload: bool = False,
) -> FlowCacheConfig:
    """Settings of the cache for one of the ways to run.

    - ``vanilla``: the original; every live chunk runs at every step, and once more when it is clean.
    - ``teacache``: one reuse decision for all live chunks.
    - ``flowcache``: a reuse decision for each chunk.

    Args:
        method: one of ``METHODS``.
        options: warm-up, compression, bits, and a threshold that overrides the preset's.
        preset: one of ``PRESETS``. ``quality``, ``balanced``, ``fast`` and ``turbo`` compute all live chunks
            at every second, fourth, sixth or eighth step of 64, counted from the start of the youngest, carry
            the velocity on along a line between them, and run a finished chunk once more. The ``paper-``
            presets do as the original FlowCache does: a chunk is computed when its accumulated distance
            reaches 0.005 (slow) or 0.01 (fast); in between, the last displacement is added again although the
            step is of another length; finished chunks are left with the keys and values of their last
            computed step; and a cache with a budget asks all queries that count, with ours at most 256.
            ``teacache`` takes the threshold of ``paper-slow`` with that preset, of ``paper-fast`` with
            others. A knob in ``options`` (``rel_l1_thresh``, ``interval``, ``tolerance``) asks for its rule
            with every preset.
        forecast: overrides what a reused chunk gets.
        computed_steps: compute all live chunks at these steps of the youngest.
        kv_offload: keep keys and values of finished chunks in host memory.

    Raises:
        ValueError: unknown method, preset or forecast, several knobs, or one that the method does not have.
    """
    options = options or FlowCacheOptions()
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    # the original's files name a threshold beside any method
    threshold = None if method == "vanilla" else options.rel_l1_thresh
    knobs = {"interval": options.interval, "tolerance": options.tolerance, "computed_steps": computed_steps}
    check_knobs({"rel_l1_thresh": threshold, **knobs}, method)
    rule, paper = rule_of(threshold=threshold, **knobs), preset.startswith("paper")
    shared = {
        "compression": _compression(options, preset),
        "storage": KVStorageConfig.of(options.kv_bits, kv_offload),
    }
    if method == "vanilla":
        return FlowCacheConfig(policy="none", clean_pass=True, **shared)
    if method == "teacache" or threshold is not None or (paper and not rule):
        return _by_distance(method, preset, threshold, options.warmup_steps, forecast, shared)
    rule = rule or {"policy": "fixed_interval", "pace": PACES[preset]}
    return FlowCacheConfig(
        warmup_steps=max(1, options.warmup_steps or 1),
        forecast=forecast or "linear_velocity",
        # The pass of a clean chunk leaves its keys and values.
        final_steps=0,
        clean_pass=True,
        together=True,
        **rule,
        **shared,
    )


def check_cache(cache: FlowCacheConfig) -> None:
    """Refuse settings of the cache that MAGI-1 lacks.

    Raises:
        ValueError: one sentence that names the field.
    """
    default = FlowCacheConfig()
    for name, reason in _LACKING.items():
        value = getattr(cache, name)
        if value != getattr(default, name):
            raise ValueError(f"cache.{name}: expected {getattr(default, name)}, got {value}; {reason}.")


def _by_distance(
    method: str,
    preset: str,
    threshold: float | None,
    warmup_steps: int | None,
    forecast: str | None,
    shared: dict[str, Any],
) -> FlowCacheConfig:
    """Settings that decide by accumulated distance; ``shared`` are the fields that every method has."""
    tea, paper = method == "teacache", preset.startswith("paper")
    if warmup_steps is None:
        warmup_steps = WARMUP_STEPS if tea or paper else 1
    if threshold is None:
        threshold = THRESHOLDS.get(preset, THRESHOLDS["paper-fast"])
    shared = {**shared, "warmup_steps": max(1, warmup_steps), "threshold": threshold}
    if tea:
        return FlowCacheConfig(
            policy="teacache", forecast=forecast or "hold_residual", clean_pass=True, **shared
        )
    return FlowCacheConfig(
        policy="chunkwise",
        final_steps=0,
        final_window_steps=1,
        forecast=forecast or ("hold_displacement" if paper else "linear_velocity"),
        clean_pass=not paper,
        together=not paper,
        **shared,
    )


def _compression(options: FlowCacheOptions, preset: str) -> KVCompressionConfig | None:
    if not options.compress_kv_cache:
        return None
    paper = preset.startswith("paper")
    return KVCompressionConfig(
        total=options.total_cache_chunk_nums,
        mix_lambda=options.mix_lambda,
        strategy=options.compress_strategy,
        query_granularity=options.query_granularity,
        max_queries=None if paper else 256,
        original=OriginalCompression(
            weighting=options.score_weighting_method, power=options.power, best_first=paper
        ),
    )
