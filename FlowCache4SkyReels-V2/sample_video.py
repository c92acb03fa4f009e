"""Sample a benchmark with SkyReels-V2, with or without FlowCache, on all GPUs of a machine or of many.

    python sample_video.py --benchmark vbench --vbench_prompt_dir VBench --dimension scene
    torchrun --nproc_per_node 8 --nnodes 2 ... sample_video.py --benchmark vbench ...

    python sample_video.py --benchmark vbench --ways vanilla teacache:paper-slow flowcache:fast ...

Videos that are there are not made again; the folder also holds their traces and ``manifest.jsonl``.
Several ways take turns, and each gets a folder.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from flowcache.benchmark.options import BenchmarkOptions, add_benchmark_flags, given_flags
from flowcache.benchmark.physics_iq import SECONDS
from flowcache.benchmark.ranks import Rank, device_of, list_devices
from flowcache.benchmark.sampling import SamplingJob, run_on
from flowcache.benchmark.turns import Turns, new_work, with_way
from flowcache.command_line import Parser
from flowcache.methods import DEFAULT_PRESET
from flowcache.rates import plain_rate
from flowcache.running import run_checked
from flowcache.unread import refuse_unread
from skyreels_v2 import ModelSource, VideoSettings, resolve_model
from skyreels_v2.command_line import (
    add_video_flags,
    cache_of,
    drop_unread,
    frame_size,
    settings_of,
    settle_flags,
)
from skyreels_v2.sampler import SkyReelsSampler
from skyreels_v2.windows import check_streaming, plan_windows


def build_parser() -> argparse.ArgumentParser:
    """The flags of every program of SkyReels-V2, and those of the benchmark."""
    parser = Parser(__doc__)
    add_video_flags(parser)
    add_benchmark_flags(parser)
    return parser


def prepare(args: argparse.Namespace) -> tuple[list[str], SamplingJob | Turns]:
    """Check all that was asked for; returns this machine's devices and the work.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    settle_flags(args)
    options = BenchmarkOptions(**given_flags(args))
    rank, devices = Rank.from_environment(os.environ), list_devices(*options.devices_text(os.environ))
    device = device_of(rank, devices)
    source = resolve_model(args.model_id, device)
    video = _video_settings(args, options, source)
    flags = _flags_by_way(args)
    samplers = {way: _sampler(way, told, source, video, device) for way, told in flags.items()}
    samples = options.list_samples(video.seed, video.fps, small=source.family == "small")
    plain = args.method in ("vanilla", "causal")
    name = "ways" if args.ways else args.method if plain else f"{args.method}_{args.preset or DEFAULT_PRESET}"
    output = Path(options.base_save_path or f"outputs/skyreels_v2/{options.benchmark}_{name}").expanduser()
    work = new_work(
        "SkyReels-V2", _describe(video), output, samples, samplers, rank, bool(args.ways), options.keep_going
    )
    work.check()
    return devices, work


def _flags_by_way(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """The flags of each way, without those that it does not read."""
    flags = {way: with_way(args, way) for way in args.ways or ()} or {args.method: args}
    refuse_unread(*map(drop_unread, flags.values()))
    return flags


def _sampler(
    way: str, args: argparse.Namespace, source: ModelSource, video: VideoSettings, device: str
) -> SkyReelsSampler:
    cache = cache_of(args, source, video)
    check_streaming(video, cache, arrives=False)
    return SkyReelsSampler(
        source=source,
        video=video,
        cache=cache,
        method=way,
        device=device,
        negative_prompt=args.negative_prompt,
        offload=args.offload,
        shows_steps=False,
    )


def _describe(video: VideoSettings) -> str:
    return (
        f"{video.num_frames} frames of {video.width} x {video.height}, {video.inference_steps} steps, "
        f"ar_step {video.ar_step}, blocks of {video.causal_block_size}"
    )


def _video_settings(
    args: argparse.Namespace, options: BenchmarkOptions, source: ModelSource
) -> VideoSettings:
    """The video to make; a continuation has the benchmark's length, and the frames that it takes over."""
    height, width = frame_size(args, source)
    if options.benchmark != "physicsiq":
        settings = settings_of(args, source, height=height, width=width)
        plan_windows(settings, 0)
        return settings
    overlap = args.overlap_history
    if overlap is None:
        raise ValueError("overlap_history is needed to continue the videos of physicsiq; 17 is usual.")
    wanted = overlap + math.ceil(SECONDS * (args.fps or plain_rate(source.defaults["fps"])))
    if args.num_frames is not None and args.num_frames < wanted:
        raise ValueError(
            f"num_frames must be at least {wanted} for physicsiq, overlap_history and {SECONDS} s, "
            f"got {args.num_frames}."
        )
    # 4 k + 1, as the model makes them
    whole = args.num_frames or wanted + (1 - wanted) % 4
    settings = settings_of(args, source, height=height, width=width, num_frames=whole)
    plan_windows(settings, overlap)
    return settings


def main() -> int:
    """Parse, check, sample; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args()
    return run_checked(lambda: prepare(args), lambda found: run_on(*found))


if __name__ == "__main__":
    sys.exit(main())
