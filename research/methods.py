"""Compare the methods of a model in turn: time, FLOPs, reuse, PSNR and SSIM.

    python -m research.methods --model skyreels --repeats 3

A method that reuses may have a preset behind it, and a threshold behind that, which overrides the preset's:
``flowcache:paper-fast``, ``flowcache:fast:0.02``.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from flowcache import FlowCacheConfig, Trace
from flowcache.files import markdown_table
from flowcache.methods import PRESETS
from flowcache.plots import distance_curves, reuse_map
from flowcache.video import Frames

from .compare import compare, main, positive, speed_table, write_results
from .runs import Model, find_model, new_parser

FRAMES = {"skyreels": 177, "magi": 240}


def configure(model: Model, text: str) -> FlowCacheConfig:
    """Make the configuration of ``METHOD[:PRESET[:THRESHOLD]]``; ValueError for other words."""
    try:
        method, preset, threshold = (*text.split(":"), None, None)[:3]
        options = {} if threshold is None else {"threshold": float(threshold)}
        if text.count(":") > 2 or (preset and method in ("vanilla", "causal")):
            raise ValueError("a method without reuse has no preset")
        return model.configure(method, preset, **options)
    except ValueError as error:
        raise ValueError(f"methods: expected METHOD[:PRESET[:THRESHOLD]], got {text!r}: {error}") from error


def bench(args: argparse.Namespace) -> str:
    args.num_frames = args.num_frames or FRAMES[args.model]
    model = find_model(args)
    presets = [f"flowcache:{preset}" for preset in PRESETS if preset != "paper-slow"]
    known = model.adapter.traits.methods
    methods = args.methods or [*known[:-1], *presets]
    configs = {method: configure(model, method) for method in methods}
    prompt = args.prompt or model.adapter.default_prompt

    traces = []

    def make(method: str, seed: int) -> tuple[Frames, Trace]:
        frames, trace = model.video(prompt, seed, configs[method], Trace(method=method))
        traces.append(trace)
        stem = args.outdir / f"{method.replace(':', '_')}_seed{seed}"
        trace.save(f"{stem}.trace.json")
        reuse_map(trace, f"{stem}.reuse.png")
        if trace.has_distances:
            distance_curves(trace, f"{stem}.distances.png")
        return frames, trace

    model.warm_up(model.configure(model.no_reuse))
    plain = [method for method in ("vanilla", "causal") if method in known]
    runs = compare(make, methods, range(args.seed, args.seed + args.repeats), plain, args.outdir, shown=methods)
    tables = (speed_table(runs, plain, lambda method: methods[0]), rate_table(traces))
    return write_results(args, "bench", "\n\n".join(tables), runs)


def rate_table(traces: Iterable[Trace]) -> str:
    """A Markdown table of the steps of each method by the number of chunks that decided to run; by wall time."""
    steps: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for trace in traces:
        for step in trace.steps:
            ran = sum(not event.reused for event in step.events)
            steps[trace.method][ran].append((step.seconds, step.flops))
    rows = []
    for method, by_count in steps.items():
        total = sum(seconds for each in by_count.values() for seconds, _ in each)
        for ran, each in sorted(by_count.items()):
            share, rate = sum(seconds for seconds, _ in each) / total, median(f / s for s, f in each) / 1e9
            rows.append((method, ran, len(each), f"{share:.0%}", f"{rate:.1f}"))
    return markdown_table(("method", "chunks computed", "steps", "share of time", "GFLOP/s"), rows)


def make_parser(description: str, name: str, frames: str, methods: list[str] | None = None) -> argparse.ArgumentParser:
    """The flags of scripts that compare methods on one prompt; ``methods``: the default."""
    parser = new_parser(description, name, frames)
    add = parser.add_argument
    add("--methods", "--ways", nargs="+", default=methods, help="ratios are to the first (default: all)")
    add("--repeats", type=positive, default=3, help="videos per method, each with its own seed (default: 3)")
    add("--seed", type=int, default=0, help="of the first repeat (default: 0)")
    add("--prompt", help="default: the model's")
    add("--height", type=int, help="pixels (default: the model's)")
    add("--width", type=int, help="pixels (default: the model's)")
    return parser


if __name__ == "__main__":
    main(make_parser(__doc__, "methods", "177; magi: 240"), bench)
