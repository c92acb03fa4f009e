"""Measure the ways to run MAGI-1 against each other: time, FLOPs, reuse and closeness.

    bash scripts/bench_magi.sh --repeats 3

A way is a method, with ``:threshold`` for one that reuses, and ``:paper`` behind it to do as the original.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from interleaved import main, measure, new_parser

from flowcache import FlowCacheConfig, Trace
from flowcache.video import Frames, to_uint8
from magi1.config import FlowCacheOptions, MagiConfig
from magi1.methods import method_config
from magi1.model_source import load_pipeline, resolve_model

CONFIG = Path(__file__).resolve().parents[1] / "FlowCache4MAGI-1/config/single_run/flowcache_t2v.json"
WAYS = ("vanilla", "teacache:0.01", "flowcache:0.01", "flowcache:0.01:paper")
PROMPT = "a red circle moves right over a dark background"


def cache_of(way: str) -> FlowCacheConfig:
    """Settings of the cache for a way.

    Raises:
        ValueError: there is no such way.
    """
    method, *rest = way.split(":")
    options = FlowCacheOptions(rel_l1_thresh=float(rest[0])) if rest else None
    return method_config(method, options, paper=rest[1:] == ["paper"])


def with_seed(config: MagiConfig, seed: int, num_frames: int) -> MagiConfig:
    """The configuration with another seed and length."""
    return replace(config, runtime_config=replace(config.runtime_config, seed=seed, num_frames=num_frames))


def bench(args: argparse.Namespace) -> str:
    """Load, measure, and return the table."""
    source = resolve_model(args.config_file, {"num_steps": args.steps}, args.model)
    pipeline = load_pipeline(source, torch.device(args.device))
    pipeline.set_progress_bar_config(disable=True)

    def run(way: str, seed: int, num_frames: int = args.num_frames) -> tuple[Frames, Trace]:
        config = with_seed(source.config, seed, num_frames)
        video = pipeline(args.prompt or PROMPT, config, cache_of(way), trace=Trace(method=way))
        return to_uint8(video.frames), video.trace

    run(args.ways[0], 0, num_frames=24)  # a first run pays for what later ones find ready
    return measure(run, args, compare_with=("vanilla",))


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, WAYS, Path("outputs/bench_magi"))
    add = parser.add_argument
    add("--config_file", type=Path, default=CONFIG)
    add("--model", choices=["auto", "official", "small"], default="auto")
    add("--num_frames", type=int, default=240)
    add("--steps", type=int, default=64)
    args = parser.parse_args()
    for way in args.ways:
        cache_of(way)
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
