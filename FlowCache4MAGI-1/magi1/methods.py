"""The method on MAGI-1: thresholds, and the model's names of options."""

from flowcache.methods import ModelTraits

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
        "prompt_switch": "clean chunks of MAGI-1 run without text, so that a prompt does not change them",
        "clean_range": "set noise2clean_kvrange in the configuration",
    },
)

method_config = TRAITS.configure
