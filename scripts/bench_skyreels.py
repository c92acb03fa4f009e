"""Measure the ways to run SkyReels-V2 against each other: time, FLOPs, reuse and closeness.

    bash scripts/bench_skyreels.sh --repeats 3

A way is a method, with ``:preset`` for one that reuses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from interleaved import main, measure, new_parser

from flowcache import Trace
from flowcache.config import DEFAULT_PRESET, PRESETS
from flowcache.video import Frames, to_uint8
from skyreels_v2 import METHODS, load_pipeline, method_config, resolve_model

WAYS = (*METHODS[:-1], *(f"flowcache:{preset}" for preset in PRESETS if preset != "paper-slow"))


def bench(args: argparse.Namespace) -> str:
    """Load, measure, and return the table."""
    source = resolve_model(args.model_id, args.device)
    settings = {
        "height": args.height,
        "width": args.width,
        "overlap_history": 17,
        "addnoise_condition": 20,
        "ar_step": 5,
        "causal_block_size": 5,
        "inference_steps": args.steps,
    }
    source.video_settings(**settings, num_frames=args.num_frames)  # refuses what is wrong before it loads
    pipeline = load_pipeline(source, args.device)
    pipeline.set_progress_bar_config(disable=True)

    def run(way: str, seed: int, num_frames: int = args.num_frames) -> tuple[Frames, Trace]:
        method, _, preset = way.partition(":")
        video = pipeline(
            args.prompt or source.defaults["prompt"],
            settings=source.video_settings(**settings, num_frames=num_frames, seed=seed),
            cache=source.method_config(method, preset or DEFAULT_PRESET),
            trace=Trace(method=way),
        )
        return to_uint8(video.frames), video.trace

    run(args.ways[0], 0, num_frames=21)  # a first run pays for what later ones find ready
    return measure(run, args, compare_with=("vanilla", "causal"))


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, WAYS, Path("outputs/bench_skyreels"))
    add = parser.add_argument
    add("--model_id", default="auto", help="as for generate_video_df.py")
    add("--num_frames", type=int, default=177)
    add("--steps", type=int, default=50)
    add("--height", type=int, help="default: the model's")
    add("--width", type=int, help="default: the model's")
    args = parser.parse_args()
    for way in args.ways:
        method_config(*way.split(":")[:2])
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
