"""Generate a video with SkyReels-V2 diffusion forcing, with or without FlowCache.

    python generate_video_df.py --prompt "a red circle moves right over a dark background"

Writes ``OUTDIR/EXPNAME/<prompt>_<method>_seed<seed>_steps<steps>.mp4``, and beside it ``.trace.json`` and
``.reuse.png``, the map of which block skipped which step.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch

from flowcache import FlowCacheConfig, Trace
from flowcache.plots import reuse_map
from flowcache.video import Frames, VideoWriter, read_image, read_video, resize_and_crop, to_float, to_uint8
from skyreels_v2 import METHODS, PRESETS, Condition, ModelSource, VideoSettings, load_pipeline, method_config
from skyreels_v2.checkpoint import resolve_model
from skyreels_v2.settings import RESOLUTIONS
from skyreels_v2.windows import plan_windows

logger = logging.getLogger("generate_video_df")

#: What the original recommends against artefacts; a model's own ``defaults.json`` may say otherwise.
OFFICIAL_DEFAULTS = {
    "prompt": "A serene lake surrounded by towering mountains, with a few swans gliding across the water.",
    "negative_prompt": "",
    "fps": 24,
    "guidance_scale": 6.0,
    "shift": 8.0,
    "num_frames": 97,
}


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    source: ModelSource
    settings: VideoSettings
    cache: FlowCacheConfig
    condition: Condition
    prompt: str
    negative_prompt: str
    original_frames: Frames | None
    output: Path
    method: str


def build_parser() -> argparse.ArgumentParser:
    """The flags: the original's first, then ours. None means: what suits the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_id", default="auto", help="auto, small, a Hub id or a folder (default: auto)")
    add("--resolution", choices=["auto", *RESOLUTIONS], default="auto", help="auto: what suits the model")
    add("--num_frames", type=int, help="frames of the video, 4 k + 1 (default: 97)")
    add("--base_num_frames", type=int, default=97, help="frames of one window (default: 97)")
    add("--overlap_history", type=int, help="frames that windows share; needed for longer videos (17 or 37)")
    add("--ar_step", type=int, default=0, help="steps by which a block lags; 0: all together (default: 0)")
    add("--causal_attention", action="store_true", help="block-causal attention for vanilla and teacache")
    add("--causal_block_size", type=int, default=5, help="latent frames of a block (default: 5)")
    add("--inference_steps", type=int, default=30, help="denoising steps (default: 30)")
    add("--guidance_scale", type=float, help="classifier-free guidance; 1 switches it off (default: 6)")
    add("--shift", type=float, help="flow shift (default: 8, with an image 5)")
    add("--fps", type=int, help="frames per second (default: 24)")
    add(
        "--addnoise_condition",
        type=int,
        default=0,
        help="noise on frames taken over, in thousandths; 20 is usual",
    )
    add("--seed", type=int, default=0)
    add("--prompt", help="what to show")
    add("--negative_prompt", help="what to avoid")
    add("--image", type=Path, help="first frame")
    add("--end_image", type=Path, help="last frame; needs --image")
    add("--video_path", type=Path, help="video to continue; needs --overlap_history")
    add("--outdir", type=Path, default=Path("outputs"), help="folder for the results (default: outputs)")
    add("--expname", default="skyreels_v2", help="folder within it (default: skyreels_v2)")
    add("--offload", action="store_true", help="keep what does not work in host memory")
    add("--teacache_thresh", type=float, help="reuse threshold; overrides the preset's")
    add(
        "--use_ret_steps",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="always compute the first 5 steps",
    )
    add("--use_compress", action="store_true", help="not yet available")
    add("--budget_block", type=int, help="not yet available")
    add("--method", choices=METHODS, default="flowcache", help="(default: flowcache)")
    add("--preset", choices=PRESETS, default="fast", help="threshold and forecast (default: fast)")
    add(
        "--forecast",
        choices=["hold_residual", "hold_displacement", "hold_velocity"],
        help="overrides the preset's",
    )
    add("--height", type=int, help="pixels, a multiple of 16; overrides --resolution")
    add("--width", type=int, help="pixels, a multiple of 16; overrides --resolution")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def prepare(args: argparse.Namespace) -> Job:
    """Check all that was asked for.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    if args.use_compress or args.budget_block is not None:
        raise ValueError("use_compress and budget_block are not available yet; leave them out.")
    source = resolve_model(args.model_id, args.device)
    defaults = {**OFFICIAL_DEFAULTS, **source.defaults}
    if args.image is not None and args.shift is None and source.family != "small":
        defaults["shift"] = 5.0
    given = {name: value for name, value in vars(args).items() if value is not None}
    wanted = {**defaults, **given}
    first, last, history = _read_conditions(args)
    height, width = _frame_size(args, defaults, first)
    fields = VideoSettings.__dataclass_fields__
    settings = VideoSettings(
        **{k: v for k, v in wanted.items() if k in fields} | {"height": height, "width": width}
    )
    condition, original = _condition(settings, first, last, history)
    plan_windows(settings, 0 if condition.prefix is None else condition.prefix.shape[1])
    cache = method_config(
        args.method,
        args.preset,
        family=source.family,
        threshold=args.teacache_thresh,
        use_ret_steps=args.use_ret_steps,
        coefficients=defaults.get("reuse_coefficients"),
        forecast=args.forecast,
        causal_attention=args.causal_attention,
    )
    prompt = wanted["prompt"].strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    output = _output_path(args, prompt)
    return Job(
        source, settings, cache, condition, prompt, wanted["negative_prompt"], original, output, args.method
    )


def _read_conditions(args: argparse.Namespace) -> tuple[Frames | None, Frames | None, Frames | None]:
    """First frame, last frame and video to continue, as they lie on disk."""
    if args.end_image is not None and args.image is None:
        raise ValueError("end_image needs image as well: the video has to start somewhere.")
    if args.video_path is not None and args.image is not None:
        raise ValueError("video_path and image exclude each other: the video starts with one of them.")
    if args.video_path is not None and args.overlap_history is None:
        raise ValueError(
            "video_path needs overlap_history: how many frames of it to continue from; 17 is usual."
        )
    first = None if args.image is None else read_image(args.image)[None]
    last = None if args.end_image is None else read_image(args.end_image)[None]
    history = None if args.video_path is None else read_video(args.video_path)[0]
    return first, last, history


def _frame_size(args: argparse.Namespace, defaults: dict[str, Any], first: Frames | None) -> tuple[int, int]:
    """Height and width; an upright image turns the frame upright."""
    resolution = "540P" if args.resolution == "auto" else args.resolution
    height, width = RESOLUTIONS[resolution]
    if args.resolution == "auto" and "height" in defaults:
        height, width = defaults["height"], defaults["width"]
    if first is not None and (first.shape[1] > first.shape[2]) != (height > width) and height != width:
        height, width = width, height
    return args.height or height, args.width or width


def _condition(
    settings: VideoSettings, first: Frames | None, last: Frames | None, history: Frames | None
) -> tuple[Condition, Frames | None]:
    """What the video starts from and arrives at; and the video that it continues, all in its size."""

    def fit(frames: Frames) -> Frames:
        return resize_and_crop(frames, settings.height, settings.width)

    if history is not None:
        overlap = settings.overlap_history
        if len(history) < overlap:
            raise ValueError(f"video_path has {len(history)} frames, fewer than overlap_history ({overlap}).")
        history = fit(history)
        return Condition(prefix=to_float(history[-overlap:])), history
    return Condition(
        prefix=None if first is None else to_float(fit(first)),
        last=None if last is None else to_float(fit(last)),
    ), None


def _output_path(args: argparse.Namespace, prompt: str) -> Path:
    folder = args.outdir / args.expname
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"outdir {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"outdir {folder} is not writable.")
    words = re.sub(r"[^\w]+", "_", prompt).strip("_")[:60]
    tag = args.method if args.method in ("vanilla", "causal") else f"{args.method}_{args.preset}"
    return folder / f"{words}_{tag}_seed{args.seed}_steps{args.inference_steps}.mp4"


def run(args: argparse.Namespace, job: Job) -> Trace:
    """Load, generate, write; returns the trace."""
    logger.info("model: %s", job.source.reason)
    trace = Trace(method=job.method)
    with trace.timer("load"):
        pipeline = load_pipeline(job.source, args.device, args.offload)
    pipeline.set_progress_bar_config(desc=job.method, unit="step")
    skip = 0
    with VideoWriter(job.output, job.settings.fps) as writer:
        if job.original_frames is not None:
            writer.write(job.original_frames)
            skip = job.settings.overlap_history
        parts = pipeline.stream(
            job.prompt, job.negative_prompt, job.settings, job.cache, job.condition, trace=trace
        )
        for part in parts:
            frames: np.ndarray = to_uint8(part.frames)
            with trace.timer("write"):
                writer.write(frames[skip:])
            skip = max(0, skip - len(frames))
    trace.settings["model"] = job.source.location
    trace.save(job.output.with_suffix(".trace.json"))
    reuse_map(trace, job.output.with_suffix(".reuse.png"))
    return trace


def summary(trace: Trace, seconds: float) -> str:
    """One line: time, reuse, FLOPs, memory."""
    actual, vanilla = trace.flops["actual"], trace.flops["vanilla"]
    return (
        f"{seconds:.1f} s in all, {trace.seconds['denoise']:.1f} s denoising; "
        f"reuse ratio {trace.reuse_ratio:.2f}; {actual / 1e15:.6f} PFLOPs "
        f"({vanilla / actual:.2f}x fewer than vanilla); peak memory {trace.peak_memory_bytes / 2**30:.2f} GiB"
    )


def main() -> int:
    """Parse, check, run; 2 for bad input, 1 for a failure."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    args = build_parser().parse_args()
    started = time.perf_counter()
    try:
        job = prepare(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        trace = run(args, job)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"video: {job.output}")
    print(f"trace: {job.output.with_suffix('.trace.json')}")
    print(f"reuse map: {job.output.with_suffix('.reuse.png')}")
    print(summary(trace, time.perf_counter() - started))
    return 0


if __name__ == "__main__":
    sys.exit(main())
