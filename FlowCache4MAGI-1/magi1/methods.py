"""The method on MAGI-1: thresholds, and the model's names of options."""

from typing import Any

from flowcache import FlowCacheConfig
from flowcache.methods import ModelTraits, make_config

METHODS = ("vanilla", "teacache", "flowcache")

TRAITS = ModelTraits(
    methods=METHODS,
    # The slow one is ours, half of the original's, and not tuned on the official weights.
    thresholds={"paper-slow": 0.005, "paper-fast": 0.01},
    whole_window=False,
    clean_pass=True,
    final_steps=0,  # the pass of a clean chunk leaves its keys and values
    final_window_steps=1,
    paper_forecast="hold_displacement",
    query_granularity="frame",
    total=8,
    names={
        "threshold": "rel_l1_thresh",
        "compress": "compress_kv_cache",
        "total": "total_cache_chunk_nums",
        "strategy": "compress_strategy",
        "weighting": "score_weighting_method",
    },
    lacking={
        "whole_window": "MAGI-1 always runs against a KV cache",
        "bidirectional": "MAGI-1 always attends to the past",
        "refresh_given": "MAGI-1 runs given chunks once",
        "clean_range": "set noise2clean_kvrange in the configuration",
    },
)


def method_config(method: str = "flowcache", preset: str | None = None, **named: Any) -> FlowCacheConfig:
    """``flowcache.methods.make_config`` for MAGI-1.

    Args:
        method: one of ``METHODS``.
        preset: one of ``flowcache.methods.PRESETS``; None: the default.
        named: fields of ``flowcache.methods.MethodOptions``, also under MAGI-1's names: ``rel_l1_thresh``,
            ``compress_kv_cache``, ``total_cache_chunk_nums``, ...
    """
    return make_config(TRAITS.translate({"method": method, "preset": preset, **named}), TRAITS)
