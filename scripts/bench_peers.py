"""Measure FlowCache against other projects' caches on the same SkyReels-V2: time, FLOPs and closeness.

    bash scripts/bench_peers.sh --repeats 3

Others run in diffusers' own pipeline with the same weights, noise and noise grid. A way is one of ours
(``method:preset``), ``diffusers`` (its pipeline, plain) or a cache with a number, ``name:number``: a
threshold, or for taylorseer, pab and fastercache the steps from one computed one to the next. A speed-up is
over the plain run of the same pipeline. What cannot run has a row with the reason.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median

from interleaved import Measurement, closeness, main, measurement, new_parser, take_turns, write_results
from peers import PeerRun, load_diffusers_pipeline, parse_cache, register_block

from flowcache import Trace
from flowcache.command_line import check_device
from flowcache.markdown import markdown_table
from flowcache.trace import StageTimer
from flowcache.video import Frames, to_uint8
from skyreels_v2 import METHODS, VideoSettings, load_pipeline, method_config, resolve_model
from skyreels_v2.settings import latent_frames

logger = logging.getLogger(__name__)

OURS = ("vanilla", "causal", "teacache", "flowcache:fast", "flowcache:balanced")
PEERS = (
    "diffusers",
    *("fbcache:0.1", "fbcache:0.4", "magcache:0.05", "magcache:0.3", "seacache:0.2", "seacache:0.6"),
    *("taylorseer:5", "taylorseer:8", "pab:2", "fastercache:2", "fastercache_attention:2"),
    *("dbcache:0.1", "dbcache:0.4", "dbcache_taylor:0.1", "dbcache_taylor:0.4"),
)
#: Uncached runs, to which closeness is measured.
PLAIN = ("vanilla", "causal", "diffusers")
#: The video on which every way is tried first.
TRIAL = {"num_frames": 37, "inference_steps": 4}


class ProcessorTimer(StageTimer):
    """Adds the processor time between enter and exit, which other processes on the machine hardly change."""

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *exception: object) -> None:
        self._trace.add_seconds(self._stage, time.process_time() - self._start)


class ProcessorTrace(Trace):
    """A trace whose seconds are processor time."""

    def timer(self, stage: str) -> StageTimer:
        return ProcessorTimer(self, stage)


class Bench:
    """Both pipelines with one model, and the runs of each way."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._new_trace = ProcessorTrace if args.clock == "processor" else Trace
        self._source = resolve_model(args.model_id, args.device)
        self._prompt = args.prompt or self._source.defaults["prompt"]
        self.settings = self._source.video_settings(
            height=args.height,
            width=args.width,
            num_frames=args.num_frames,
            overlap_history=17,
            addnoise_condition=20,
            ar_step=args.ar_step,
            causal_block_size=5,
            inference_steps=args.steps,
        )
        check_blocks(self.settings)
        register_block()
        self._ours = load_pipeline(self._source, args.device)
        self._ours.set_progress_bar_config(disable=True)
        pipeline = load_diffusers_pipeline(self._source, args.device, args.grid == "original")
        self._peers = PeerRun(pipeline, self.settings, self._prompt, self._ours.default_negative_prompt)
        self._trial = self._peers.with_settings(**TRIAL)

    def run(self, way: str, seed: int) -> tuple[Frames, Trace]:
        """The video of a seed."""
        if is_ours(way):
            return self._run_ours(way, seed)
        trace = self._new_trace(method=way)
        with parse_cache(way)(self._peers):
            return self._peers.video(seed, trace), trace

    def why_not(self, way: str) -> str | None:
        """Try a way on a short video; the reason if it fails."""
        if is_ours(way):
            return None
        try:
            with parse_cache(way)(self._trial):
                self._trial.latents(seed=0)
        # Other people's code can fail in any way, and that it does is what the table is to tell.
        except Exception as error:
            logger.info("%s cannot run", way, exc_info=True)
            return f"{type(error).__name__}: {error}"
        return None

    def _run_ours(self, way: str, seed: int) -> tuple[Frames, Trace]:
        method, _, preset = way.partition(":")
        video = self._ours(
            self._prompt,
            settings=VideoSettings(**self.settings.as_dict() | {"seed": seed}),
            cache=self._source.method_config(method, preset or "fast"),
            trace=self._new_trace(method=way),
        )
        return to_uint8(video.frames), video.trace


def is_ours(way: str) -> bool:
    """Whether a way runs in our pipeline."""
    return way.partition(":")[0] in METHODS


def check_blocks(settings: VideoSettings) -> None:
    """Refuse a video of which diffusers would leave a part unfinished."""
    frames = latent_frames(settings.num_frames)
    if settings.ar_step and frames % settings.causal_block_size:
        raise ValueError(
            f"num_frames must fill blocks of {settings.causal_block_size} latent frames, as diffusers leaves "
            f"the rest of them noise; got {settings.num_frames}, try 97 or 177."
        )


def bench(args: argparse.Namespace) -> str:
    """Load, try, measure, and return the table."""
    runs = Bench(args)
    reasons = {way: runs.why_not(way) for way in args.ways}
    asked, args.ways = args.ways, [way for way in args.ways if reasons[way] is None]
    measurements: list[Measurement] = []
    for seed, videos, traces in take_turns(runs.run, args):
        measurements += [measurement(way, seed, videos, trace, PLAIN) for way, trace in traces.items()]
        text = summarise(measurements, {way: reasons[way] for way in asked})
        write_results(args, measurements, f"{text}\n\n{versions()}")
    return text


def summarise(measurements: Sequence[Measurement], reasons: Mapping[str, str | None]) -> str:
    """A Markdown table.

    Args:
        measurements: of the ways that ran.
        reasons: ways in the order of the rows, with what kept them from running; None: nothing.
    """
    seeds = sorted({m.seed for m in measurements})
    by_run = {(m.way, m.seed): m for m in measurements}
    titles = ["way", "denoising s", "speed-up", "TFLOPs", "FLOPs ratio"]
    titles += [f"PSNR, SSIM to {plain}" for plain in PLAIN]
    rows = []
    for way, reason in reasons.items():
        if reason is not None:
            rows.append([way, f"cannot run: {reason}", *[""] * (len(titles) - 2)])
            continue
        runs = [by_run[way, seed] for seed in seeds]
        bases = [by_run.get(("vanilla" if is_ours(way) else "diffusers", seed)) for seed in seeds]
        cells = [way, f"{median(r.denoise_seconds for r in runs):.2f}"]
        cells += [_ratio(bases, runs, lambda r: r.denoise_seconds)]
        cells += [f"{mean(r.flops['actual'] for r in runs) / 1e12:.3f}"]
        cells += [_ratio(bases, runs, lambda r: r.flops["actual"])]
        rows.append(cells + [closeness(runs, plain) for plain in PLAIN])
    return markdown_table(titles, rows)


def _ratio(bases: Sequence[Measurement | None], runs: Sequence[Measurement], of) -> str:
    """Median over the seeds of what the plain run has more of; empty where that did not run."""
    if None in bases:
        return ""
    return f"{median(of(base) / of(run) for base, run in zip(bases, runs, strict=True)):.2f}"


def versions() -> str:
    """Installed versions of what was compared."""
    found = []
    for package in ("torch", "diffusers", "cache-dit"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} is not installed")
    return ", ".join(found)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, (*OURS, *PEERS), Path("outputs/bench_peers"))
    add = parser.add_argument
    add("--model_id", default="auto", help="as for generate_video_df.py")
    add("--num_frames", type=int, default=97)
    add("--steps", type=int, default=50)
    add("--ar_step", type=int, default=5, help="0: all blocks together, with attention to the whole window")
    add("--height", type=int, help="default: the model's")
    add("--width", type=int, help="default: the model's")
    add("--grid", choices=("original", "diffusers"), default="original", help="noise grid of diffusers' runs")
    add(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="processor: time of all threads, for one thread on a busy machine without a GPU",
    )
    args = parser.parse_args()
    check_device(args.device)
    for way in args.ways:
        if is_ours(way):
            method_config(*way.split(":")[:2])
        else:
            parse_cache(way)
    return args


if __name__ == "__main__":
    main(parse_arguments, bench)
