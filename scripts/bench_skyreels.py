"""Measure the four ways to run SkyReels-V2 against each other: time, FLOPs, reuse and closeness.

    bash scripts/bench_skyreels.sh --repeats 3

The ways take turns within each repeat, so that a slow spell of the machine hits all of them; each repeat has
a seed of its own. Times are medians over the repeats, ratios are medians of the ratios within a repeat.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import torch
from tqdm import tqdm

from flowcache import Trace
from flowcache.environment import describe_environment
from flowcache.files import write_atomically
from flowcache.metrics import psnr, ssim
from flowcache.plots import distance_curves, reuse_map
from flowcache.video import Frames, contact_sheet, to_uint8
from skyreels_v2 import METHODS, FlowCacheSkyReelsV2Pipeline, load_pipeline, method_config, resolve_model

logger = logging.getLogger("bench_skyreels")


@dataclass(frozen=True)
class Measurement:
    """One run of one way; closeness is to the same seed's ``vanilla`` and ``causal``, dB and SSIM."""

    way: str
    seed: int
    denoise_seconds: float
    flops: dict[str, float]
    reuse_ratio: float
    psnr: dict[str, float]
    ssim: dict[str, float]


class Bench:
    """Runs every way on one prompt and keeps what came out."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._source = resolve_model(args.model_id, args.device)
        self._pipeline: FlowCacheSkyReelsV2Pipeline = load_pipeline(self._source, args.device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._args = args

    def run(self, way: str, seed: int, num_frames: int | None = None) -> tuple[Frames, Trace]:
        """One video; ``way`` is a method, with ``:preset`` for one that reuses."""
        args, (method, _, preset) = self._args, way.partition(":")
        settings = self._source.video_settings(
            height=args.height,
            width=args.width,
            num_frames=num_frames or args.num_frames,
            overlap_history=17,
            addnoise_condition=20,
            ar_step=5,
            causal_block_size=5,
            inference_steps=args.steps,
            seed=seed,
        )
        cache = self._source.method_config(method, preset or "fast")
        prompt = args.prompt or self._source.defaults["prompt"]
        video = self._pipeline(prompt, settings=settings, cache=cache, trace=Trace(method=way))
        return to_uint8(video.frames), video.trace

    def repeat(self, seed: int) -> tuple[list[Measurement], dict[str, Frames], dict[str, Trace]]:
        """Every way once, in turns."""
        results = {way: self.run(way, seed) for way in tqdm(self._args.ways, leave=False, unit="way")}
        videos = {way: video for way, (video, _) in results.items()}
        traces = {way: trace for way, (_, trace) in results.items()}
        measurements = []
        for way, trace in traces.items():
            others = [other for other in ("vanilla", "causal") if other in videos]
            measurements.append(
                Measurement(
                    way,
                    seed,
                    trace.seconds["denoise"],
                    trace.flops,
                    trace.reuse_ratio,
                    {other: psnr(videos[way], videos[other])[0] for other in others},
                    {other: ssim(videos[way], videos[other])[0] for other in others},
                )
            )
        return measurements, videos, traces


def summarise(measurements: list[Measurement], ways: list[str]) -> str:
    """A Markdown table, a row for each way, and the split of the gain."""
    seeds = sorted({m.seed for m in measurements})
    by_run = {(m.way, m.seed): m for m in measurements}
    lines = [
        "| way | denoising s | speed-up | TFLOPs | FLOPs ratio | speed-up / FLOPs ratio | reuse ratio "
        "| PSNR, SSIM to vanilla | PSNR, SSIM to causal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        runs = [by_run[way, seed] for seed in seeds]
        bases = [by_run[ways[0], seed] for seed in seeds]
        speed = median(b.denoise_seconds / r.denoise_seconds for b, r in zip(bases, runs, strict=True))
        saved = median(b.flops["actual"] / r.flops["actual"] for b, r in zip(bases, runs, strict=True))
        close = [
            f"{mean(r.psnr[other] for r in runs):.1f} dB, {mean(r.ssim[other] for r in runs):.3f}"
            if other in runs[0].psnr and other != way
            else ""
            for other in ("vanilla", "causal")
        ]
        lines.append(
            f"| {way} | {median(r.denoise_seconds for r in runs):.2f} | {speed:.2f} "
            f"| {mean(r.flops['actual'] for r in runs) / 1e12:.3f} | {saved:.2f} | {speed / saved:.2f} "
            f"| {mean(r.reuse_ratio for r in runs):.2f} | {close[0]} | {close[1]} |"
        )
    for way in ways:
        flops = by_run[way, seeds[0]].flops
        if by_run[way, seeds[0]].reuse_ratio and flops["actual"] < flops["causal"]:
            lines.append(
                f"\n{way}: {flops['vanilla'] / flops['live_only']:.2f}x from running live chunks only, "
                f"{flops['live_only'] / flops['causal']:.2f}x from causal attention through the cache, "
                f"{flops['causal'] / flops['actual']:.2f}x from reuse (seed {seeds[0]})."
            )
    return "\n".join(lines)


def bench(args: argparse.Namespace) -> str:
    """Run, write everything to the output folder, and return the table."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    runner = Bench(args)
    runner.run(args.ways[0], seed=0, num_frames=21)  # a first run pays for what later ones find ready
    measurements: list[Measurement] = []
    for seed in tqdm(range(args.seed, args.seed + args.repeats), unit="repeat"):
        measured, videos, traces = runner.repeat(seed)
        measurements += measured
        contact_sheet(videos, args.outdir / f"seed{seed}.png", columns=12)
        for way, trace in traces.items():
            stem = args.outdir / f"{way.replace(':', '_')}_seed{seed}"
            trace.save(stem.with_suffix(".trace.json"))
            reuse_map(trace, stem.with_suffix(".reuse.png"))
            if trace.reuse_ratio:
                distance_curves(trace, stem.with_suffix(".distances.png"))
    table = summarise(measurements, args.ways)
    record = {
        "arguments": {key: str(value) for key, value in vars(args).items()},
        "environment": describe_environment(torch.device(args.device)),
        "threads": torch.get_num_threads(),
        "measurements": [asdict(m) for m in measurements],
    }
    write_atomically(args.outdir / "bench.json", json.dumps(record, indent=1).encode())
    write_atomically(args.outdir / "bench.md", f"{table}\n".encode())
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_id", default="auto", help="as for generate_video_df.py")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--ways",
        nargs="+",
        default=[*METHODS[:-1], "flowcache:fast", "flowcache:slow"],
        help="methods, with :preset where wanted; ratios are to the first",
    )
    add("--repeats", type=int, default=3)
    add("--seed", type=int, default=0, help="of the first repeat")
    add("--prompt", help="default: the model's")
    add("--num_frames", type=int, default=177)
    add("--steps", type=int, default=50)
    add("--height", type=int, help="default: the model's")
    add("--width", type=int, help="default: the model's")
    add("--outdir", type=Path, default=Path("outputs/bench_skyreels"))
    args = parser.parse_args()
    for way in args.ways:
        try:
            method_config(*way.split(":"))
        except (ValueError, TypeError) as error:
            parser.error(f"--ways: {error}")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1.")
    return args


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    args = parse_arguments()
    try:
        table = bench(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    print(table)
    print(f"\nmeasurements, contact sheets, traces and reuse maps: {args.outdir}")


if __name__ == "__main__":
    main()
