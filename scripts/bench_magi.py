"""Measure the ways to run MAGI-1 against each other: time, FLOPs, reuse and closeness.

    bash scripts/bench_magi.sh --repeats 3

A way is a method; one that reuses may have a preset behind it, and a threshold behind that, which overrides
the preset's: ``flowcache:paper-fast``, ``flowcache:fast:0.02``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from interleaved import main, measure, new_parser

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import check_device
from flowcache.config import DEFAULT_PRESET, PRESETS
from flowcache.video import Frames, to_uint8
from magi1.config import FlowCacheOptions, MagiConfig
from magi1.methods import method_config
from magi1.model_source import load_pipeline, resolve_model
from magi1.request import VideoRequest

CONFIG = Path(__file__).resolve().parents[1] / "FlowCache4MAGI-1/config/single_run/4.5B_distill.json"
WAYS = ("vanilla", "teacache", *(f"flowcache:{preset}" for preset in PRESETS if preset != "paper-slow"))
PROMPT = "a red circle moves right over a dark background"


def cache_of(way: str) -> FlowCacheConfig:
    """Settings of the cache for a way.

    Raises:
        ValueError: there is no such way.
    """
    method, *rest = way.split(":")
    if len(rest) > 2 or (rest and method == "vanilla"):
        raise ValueError(f"ways must be vanilla, or METHOD[:PRESET[:THRESHOLD]], got {way!r}.")
    options = None
    if len(rest) == 2:
        try:
            options = FlowCacheOptions(rel_l1_thresh=float(rest[1]))
        except ValueError as error:
            raise ValueError(
                f"ways must have a finite threshold of at least 0, got {rest[1]!r} in {way!r}."
            ) from error
    return method_config(method, options, preset=rest[0] if rest else DEFAULT_PRESET)


def with_seed(config: MagiConfig, seed: int, num_frames: int) -> MagiConfig:
    """The configuration with another seed and length."""
    return replace(config, runtime_config=replace(config.runtime_config, seed=seed, num_frames=num_frames))


def bench(args: argparse.Namespace) -> str:
    """Load, measure, and return the table."""
    source = resolve_model(args.config_file, {"num_steps": args.steps}, args.model, args.device)
    pipeline = load_pipeline(source, args.device)
    pipeline.set_progress_bar_config(disable=True)

    def run(way: str, seed: int, num_frames: int = args.num_frames) -> tuple[Frames, Trace]:
        config = with_seed(source.config, seed, num_frames)
        request = VideoRequest(prompt=args.prompt or PROMPT, config=config, cache=cache_of(way))
        video = pipeline(request, Trace(method=way))
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
    check_device(args.device)
    for way in args.ways:
        cache_of(way)
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
