"""The ways to run MAGI-1, as settings of the cache."""

from __future__ import annotations

from flowcache import FlowCacheConfig
from flowcache.config import KVCompressionConfig, KVStorageConfig

from .config import FlowCacheOptions

METHODS = ("vanilla", "teacache", "flowcache")
PRESETS = ("fast", "slow", "paper_fast", "paper_slow")
THRESHOLDS = {"fast": 0.01, "slow": 0.005}


def method_config(
    method: str,
    options: FlowCacheOptions | None = None,
    *,
    preset: str = "fast",
    forecast: str | None = None,
    kv_offload: bool = False,
) -> FlowCacheConfig:
    """Settings of the cache for one of the ways to run.

    - ``vanilla``: the original; every live chunk runs at every step, and once more when it is clean.
    - ``teacache``: one reuse decision for all live chunks.
    - ``flowcache``: a reuse decision for each chunk.

    Args:
        method: one of ``METHODS``.
        options: warm-up, compression, bits, and a threshold that overrides the preset's.
        preset: one of ``PRESETS``; sets the threshold. ``fast`` is 0.01, as in the original's file; ``slow``,
            half of it, is ours and not tuned on the official weights. The ``paper_`` presets do as the
            original FlowCache does: add the last displacement again although the step is of another length,
            and leave finished chunks with the keys and values of their last computed step. Ours keep the
            velocity, run a finished chunk once more, and compute chunks half way to the threshold along with
            others.
        forecast: overrides what a reused chunk gets.
        kv_offload: keep keys and values of finished chunks in host memory.

    Raises:
        ValueError: unknown method, preset or forecast.
    """
    options = options or FlowCacheOptions()
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    paper = preset.startswith("paper")
    compression = _compression(options, paper)
    storage = KVStorageConfig.of(options.kv_bits, kv_offload)
    if method == "vanilla":
        return FlowCacheConfig(policy="none", clean_pass=True, compression=compression, storage=storage)
    threshold = options.rel_l1_thresh
    if threshold is None:
        threshold = THRESHOLDS[preset.removeprefix("paper_")]
    shared = {
        "threshold": threshold,
        "warmup_steps": max(1, options.warmup_steps),
        "compression": compression,
        "storage": storage,
    }
    if method == "teacache":
        return FlowCacheConfig(
            policy="teacache", forecast=forecast or "hold_residual", clean_pass=True, **shared
        )
    return FlowCacheConfig(
        policy="chunkwise",
        final_steps=0 if paper else 1,
        final_window_steps=1,
        forecast=forecast or ("hold_displacement" if paper else "hold_velocity"),
        clean_pass=not paper,
        join_at=1.0 if paper else 0.5,
        **shared,
    )


def _compression(options: FlowCacheOptions, paper: bool) -> KVCompressionConfig | None:
    if not options.compress_kv_cache:
        return None
    return KVCompressionConfig(
        total=options.total_cache_chunk_nums,
        mix_lambda=options.mix_lambda,
        strategy=options.compress_strategy,
        query_granularity=options.query_granularity,
        weighting=options.score_weighting_method,
        power=options.power,
        in_time=not paper,
    )
