"""The four ways to run SkyReels-V2, as settings of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowcache import FlowCacheConfig
from flowcache.config import DEFAULT_PRESET, PACES, PRESETS, KVCompressionConfig, KVStorageConfig, rule_of
from flowcache.knobs import check_knobs
from flowcache.kv.original import OriginalCompression

METHODS = ("vanilla", "causal", "teacache", "flowcache")
THRESHOLDS = {"paper-slow": 0.1, "paper-fast": 0.15}

#: TeaCache's fitted polynomials, highest power first: over the modulation (with retention steps) and over
#: the time embedding (without), for the two sizes of the model.
COEFFICIENTS = {
    ("1.3B", True): (-5.21862437e4, 9.23041404e3, -5.28275948e2, 13.6987616, -4.99875664e-2),
    ("14B", True): (-3.03318725e5, 4.90537029e4, -2.65530556e3, 58.7365115, -0.315583525),
    ("1.3B", False): (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 0.137887774),
    ("14B", False): (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
}


def method_config(
    method: str,
    preset: str = DEFAULT_PRESET,
    *,
    family: str | None = None,
    threshold: float | None = None,
    interval: int | None = None,
    tolerance: float | None = None,
    computed_steps: tuple[int, ...] | None = None,
    use_ret_steps: bool | None = None,
    coefficients: Sequence[float] | None = None,
    forecast: str | None = None,
    refresh_given: bool = False,
    causal_attention: bool = False,
    budget_block: int | None = None,
    kvrange: int | None = None,
    kv_bits: int | None = None,
    kv_offload: bool = False,
) -> FlowCacheConfig:
    """Settings of the cache for one of the four ways to run.

    - ``vanilla``: the original; full attention over the window, everything runs at every step.
    - ``causal``: only live blocks run, block-causally, against a KV cache; nothing is reused.
    - ``teacache``: ``vanilla`` with one reuse decision for the whole window.
    - ``flowcache``: ``causal`` with a reuse decision for each block.

    Args:
        method: one of ``METHODS``.
        preset: one of ``PRESETS``. ``quality``, ``balanced``, ``fast`` and ``turbo`` compute all live blocks
            at every second, third, fifth or seventh step of 50, counted from the start of the youngest, and
            carry the velocity on along a line between them. The ``paper-`` presets do as the original: a
            block is computed when its accumulated distance reaches 0.1 (slow) or 0.15 (fast), and holds the
            residual of the block stack in between; a cache with a budget is compressed within a step, by all
            queries of a block, with ours between two steps, by at most 256. ``teacache`` takes the threshold
            of ``paper-slow`` with that preset, of ``paper-fast`` with others.
        family: ``"1.3B"`` or ``"14B"`` for the fitted polynomial; others take the distance as it is.
        threshold: decide by the accumulated distance, as the ``paper-`` presets do, with this threshold.
        interval: compute every so many steps.
        tolerance: skip while the error that this brings is expected to stay below it.
        computed_steps: compute all live blocks at these steps of the youngest.
        use_ret_steps: where distance decides, always compute the first five steps, and use the polynomial
            fitted for that. None: with ``teacache`` and the ``paper-`` presets.
        coefficients: a polynomial of your own, highest power first.
        forecast: overrides the preset's forecast.
        refresh_given: see ``FlowCacheConfig``.
        causal_attention: make the attention of ``vanilla`` and ``teacache`` block-causal.
        budget_block: keep only the best tokens of finished blocks, this many blocks' worth; None: all.
        kvrange: finished blocks that a block sees, the newest; None: all.
        kv_bits: keep keys and values of finished blocks in 8 or 4 bits; None: as the model makes them.
        kv_offload: keep them in host memory.

    Raises:
        ValueError: unknown method, preset or forecast, a knob out of range, several of them or one that the
            method does not have, or a limit on the cache of a method without one.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    knobs = {"threshold": threshold, "interval": interval, "tolerance": tolerance}
    knobs["computed_steps"] = computed_steps
    check_knobs(knobs, method)
    rule, paper, whole = rule_of(**knobs), preset.startswith("paper"), method in ("vanilla", "teacache")
    shared = {
        "whole_window": whole,
        "bidirectional": whole and not causal_attention,
        "refresh_given": refresh_given,
        **_cache_limits(method, preset, budget_block, kvrange),
        "storage": _storage(method, kv_bits, kv_offload),
    }
    if method in ("vanilla", "causal"):
        return FlowCacheConfig(policy="none", **shared)
    if method == "teacache" or threshold is not None or (paper and not rule):
        if coefficients is None:
            coefficients = COEFFICIENTS.get((family, use_ret_steps is not False))
        return _by_distance(method, preset, threshold, use_ret_steps, coefficients, forecast, shared)
    rule = rule or {"policy": "fixed_interval", "pace": PACES[preset]}
    forecast = forecast or "linear_velocity"
    return FlowCacheConfig(warmup_steps=1, together=True, forecast=forecast, **rule, **shared)


def _by_distance(
    method: str,
    preset: str,
    threshold: float | None,
    use_ret_steps: bool | None,
    coefficients: Sequence[float] | None,
    forecast: str | None,
    shared: dict[str, Any],
) -> FlowCacheConfig:
    """Settings that decide by accumulated distance; ``shared`` are the fields that every method has."""
    tea = method == "teacache"
    original = tea or preset.startswith("paper")
    return FlowCacheConfig(
        policy="teacache" if tea else "chunkwise",
        threshold=THRESHOLDS.get(preset, THRESHOLDS["paper-fast"]) if threshold is None else threshold,
        warmup_steps=5 if (original if use_ret_steps is None else use_ret_steps) else 1,
        coefficients=None if coefficients is None else tuple(coefficients),
        # Without retention steps, TeaCache's polynomial is over the time embedding; the original FlowCache
        # applies it to the modulation all the same.
        indicator="timestep_embedding" if tea and use_ret_steps is False else None,
        forecast=forecast or ("hold_residual" if original else "linear_velocity"),
        together=not original,
        **shared,
    )


def _cache_limits(method: str, preset: str, budget_block: int | None, kvrange: int | None) -> dict[str, Any]:
    """What blocks may see of finished ones, as fields of ``FlowCacheConfig``."""
    limits: dict[str, Any] = {} if kvrange is None else {"clean_range": kvrange}
    if budget_block is not None:
        paper = preset.startswith("paper")
        limits["compression"] = KVCompressionConfig(
            budget=budget_block,
            query_granularity="chunk",
            max_queries=None if paper else 256,
            original=OriginalCompression(within_step=True) if paper else None,
        )
    if limits and method in ("vanilla", "teacache"):
        raise ValueError(f"use_compress and use_kvrange need a cache, which {method} lacks; use flowcache.")
    return limits


def _storage(method: str, kv_bits: int | None, kv_offload: bool) -> KVStorageConfig | None:
    """How finished blocks are kept; None: as live ones."""
    storage = KVStorageConfig.of(kv_bits, kv_offload)
    if storage and method in ("vanilla", "teacache"):
        raise ValueError(f"kv_bits and kv_offload need a cache, which {method} lacks; use flowcache.")
    return storage
