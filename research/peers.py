"""Compare FlowCache with other projects' caches on the same SkyReels-V2: time, FLOPs, PSNR and SSIM.

    python -m research.peers --repeats 3

Others run in diffusers' own pipeline with the same weights, noise and noise grid. A method is one of ours
(``METHOD:PRESET``), ``diffusers`` (its pipeline, plain) or a cache with a number, ``NAME:NUMBER``: a
threshold, or for taylorseer, pab and fastercache the interval between computed steps. A speed-up is over the
plain run of the same pipeline. A cache that cannot run has a row with the reason.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from flowcache import Trace
from flowcache.video import Frames
from skyreels_v2 import METHODS as OURS
from skyreels_v2.settings import latent_frames

from .compare import add_comparison_flags, compare, main, new_parser, speed_table, write_results
from .methods import configure
from .peer_caches import PeerRun, enable_cache, make_pipeline, parse_cache, register_block
from .runs import add_model_flags, find_model

METHODS = (
    *("vanilla", "causal", "teacache", "flowcache:fast", "flowcache:balanced", "diffusers"),
    *("fbcache:0.1", "fbcache:0.4", "magcache:0.05", "magcache:0.3", "seacache:0.2", "seacache:0.6"),
    *("taylorseer:5", "taylorseer:8", "pab:2", "fastercache:2", "fastercache_attention:2"),
    *("dbcache:0.1", "dbcache:0.4", "dbcache_taylor:0.1", "dbcache_taylor:0.4"),
)
#: Runs without reuse, with which the others are compared.
PLAIN = ("vanilla", "causal", "diffusers")
#: The video on which every cache is tried first.
TRIAL = {"num_frames": 37, "inference_steps": 4}


class ProcessorTrace(Trace):
    """A trace whose seconds are process time, which other programs hardly change."""

    @contextmanager
    def timer(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.add_seconds(stage, time.process_time() - start)


def is_ours(method: str) -> bool:
    return method.partition(":")[0] in OURS


def find_base(method: str) -> str:
    return "vanilla" if is_ours(method) else "diffusers"


def find_failure(run: PeerRun, method: str) -> str | None:
    """Try a cache on a short video; the reason if it fails."""
    try:
        with enable_cache(run, method):
            run.denoise(0, Trace())
    # other projects' code can fail in any manner, and the table says how
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def bench(args: argparse.Namespace) -> str:
    model = find_model(args, ar_step=args.ar_step)
    prompt = args.prompt or model.adapter.default_prompt
    new_trace = ProcessorTrace if args.clock == "processor" else Trace
    register_block()
    pipeline = make_pipeline(model.pipeline, args.grid == "original")
    settings = model.adapter.video
    peers = PeerRun(pipeline, settings, prompt, model.pipeline.default_negative_prompt)
    trial = replace(peers, settings=replace(settings, **TRIAL))
    reasons = {}
    for method in args.methods:
        if not is_ours(method) and (failure := find_failure(trial, method)):
            reasons[method] = failure

    def make(method: str, seed: int) -> tuple[Frames, Trace]:
        trace = new_trace(method=method)
        if is_ours(method):
            return model.video(prompt, seed, configure(model, method), trace)
        with enable_cache(peers, method):
            return peers.video(seed, trace), trace

    methods = [method for method in args.methods if method not in reasons]
    seeds = range(args.seed, args.seed + args.repeats)
    runs = compare(make, methods, seeds, PLAIN, args.outdir, shown=methods)
    table = speed_table(runs, args.methods, PLAIN, find_base, reasons)
    return write_results(args, "bench", table, runs)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "peers")
    add_model_flags(parser, "97")
    add_comparison_flags(parser, list(METHODS))
    add = parser.add_argument
    lag = "steps by which blocks lag; 0: all together, attention to the whole window (default: 5)"
    add("--ar_step", type=int, default=5, help=lag)
    add("--grid", choices=("original", "diffusers"), default="original", help="noise grid of diffusers' runs")
    clock = "wall time, or processor time of all threads: for one thread on a busy CPU (default: wall)"
    add("--clock", choices=("wall", "processor"), default="wall", help=clock)
    args = parser.parse_args()
    if args.model != "skyreels":
        raise ValueError(f"model: expected skyreels, which diffusers has, got {args.model}.")
    model = find_model(args, ar_step=args.ar_step)
    block, frames = model.adapter.video.causal_block_size, model.adapter.video.num_frames
    if args.ar_step and latent_frames(frames) % block:
        raise ValueError(
            f"num_frames: expected blocks of {block} latent frames, as diffusers leaves the rest noise, got "
            f"{frames}; try 97 or 177."
        )
    for method in args.methods:
        configure(model, method) if is_ours(method) else parse_cache(method)
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
