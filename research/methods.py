"""Compare the methods of a model in turn: time, FLOPs, reuse, PSNR and SSIM.

    python -m research.methods --model skyreels --repeats 3

A method that reuses may have a preset behind it, and a threshold behind that, which overrides the preset's:
``flowcache:paper-fast``, ``flowcache:fast:0.02``.
"""

import argparse

from flowcache import FlowCacheConfig, Trace
from flowcache.methods import PRESETS
from flowcache.plots import distance_curves, reuse_map
from flowcache.video import Frames

from .compare import Run, add_comparison_flags, compare, main, new_parser, speed_table, write_results
from .runs import Model, add_model_flags, find_model

FRAMES = {"skyreels": 177, "magi": 240}


def configure(model: Model, text: str) -> FlowCacheConfig:
    """Make the configuration of ``METHOD[:PRESET[:THRESHOLD]]``; ValueError for other words."""
    method, *rest = text.split(":")
    if len(rest) > 2 or (rest and method in ("vanilla", "causal")):
        raise ValueError(f"methods: expected METHOD[:PRESET[:THRESHOLD]], got {text!r}.")
    try:
        options = {"threshold": float(rest[1])} if len(rest) == 2 else {}
    except ValueError:
        raise ValueError(f"methods: expected a number as threshold, got {rest[1]!r} in {text!r}.") from None
    return model.configure(method, rest[0] if rest else None, **options)


def bench(args: argparse.Namespace) -> str:
    model = find_model(args)
    prompt = args.prompt or model.adapter.default_prompt

    def make(method: str, seed: int) -> tuple[Frames, Trace]:
        trace = Trace(method=method)
        frames, _ = model.video(prompt, seed, configure(model, method), trace)
        stem = args.outdir / f"{method.replace(':', '_')}_seed{seed}"
        trace.save(f"{stem}.trace.json")
        reuse_map(trace, f"{stem}.reuse.png")
        if trace.has_distances:
            distance_curves(trace, f"{stem}.distances.png")
        return frames, trace

    model.warm_up(model.configure(model.no_reuse))
    plain = [method for method in ("vanilla", "causal") if method in model.methods]
    seeds = range(args.seed, args.seed + args.repeats)
    runs = compare(make, args.methods, seeds, plain, args.outdir, shown=args.methods)
    table = speed_table(runs, args.methods, plain, lambda method: args.methods[0])
    splits = filter(None, map(split_gain, runs[: len(args.methods)]))
    return write_results(args, "bench", "\n\n".join([table, *splits]), runs)


def split_gain(run: Run) -> str:
    """Sources of a run's gain; empty where it reuses nothing."""
    flops = run.flops
    if not run.reuse_ratio or flops["actual"] >= flops["causal"]:
        return ""
    return (
        f"{run.method}: {flops['vanilla'] / flops['live_only']:.2f}x from running live chunks only, "
        f"{flops['live_only'] / flops['causal']:.2f}x from causal attention through the cache, "
        f"{flops['causal'] / flops['actual']:.2f}x from reuse (seed {run.seed})."
    )


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "methods")
    add_model_flags(parser, "177; magi: 240")
    add_comparison_flags(parser)
    args = parser.parse_args()
    args.num_frames = args.num_frames or FRAMES[args.model]
    model = find_model(args)
    presets = [f"flowcache:{preset}" for preset in PRESETS if preset != "paper-slow"]
    args.methods = args.methods or [*model.methods[:-1], *presets]
    for method in args.methods:
        configure(model, method)
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
