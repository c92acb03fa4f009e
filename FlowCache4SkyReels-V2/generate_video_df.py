"""Generate a video with SkyReels-V2 diffusion forcing, with or without FlowCache.

    python generate_video_df.py --prompt "a red circle moves right over a dark background"

Writes ``OUTDIR/EXPNAME/<prompt>_<method>_seed<seed>_steps<steps>_<digest of all settings>.mp4``, and beside
it ``.trace.json`` and ``.reuse.png``, the map of which block skipped which step. While it runs, the video
grows as ``.part.mp4``, which can be played at any moment.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import Parser, check_device, run_program, words_of, writable_folder
from flowcache.kv.quantized import BITS
from flowcache.video import (
    Frames,
    VideoInfo,
    VideoWriter,
    probe_video,
    read_image,
    read_video,
    resize_and_crop,
    to_float,
    to_uint8,
)
from skyreels_v2 import METHODS, PRESETS, Condition, ModelSource, VideoSettings, load_pipeline, resolve_model
from skyreels_v2.settings import RESOLUTIONS, latent_frames
from skyreels_v2.windows import check_streaming, plan_windows


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    source: ModelSource
    settings: VideoSettings
    cache: FlowCacheConfig
    condition: Condition
    prompt: str
    negative_prompt: str
    history: Frames | None
    output: Path
    method: str


def build_parser() -> argparse.ArgumentParser:
    """The flags: the original's first, then ours. None means: what suits the model."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_id", default="auto", help="auto, small, a Hub id or a folder (default: auto)")
    add("--resolution", choices=["auto", *RESOLUTIONS], default="auto", help="auto: what suits the model")
    add("--num_frames", type=int, help="frames of the video, 4 k + 1 (default: 97)")
    add("--base_num_frames", type=int, default=97, help="frames of one window (default: 97)")
    add("--overlap_history", type=int, help="frames that windows share; needed for longer videos (17 or 37)")
    add(
        "--streaming",
        action="store_true",
        help="longer videos go on as one staircase, without windows; needs --ar_step, and --use_compress or "
        "--use_kvrange; --overlap_history is then what is taken of --video_path",
    )
    add("--ar_step", type=int, default=0, help="steps by which a block lags; 0: all together (default: 0)")
    add("--causal_attention", action="store_true", help="block-causal attention for vanilla and teacache")
    add("--causal_block_size", type=int, help="latent frames of a block (default: 1; small model: 5)")
    add("--inference_steps", type=int, default=30, help="denoising steps (default: 30)")
    add("--guidance_scale", type=float, help="classifier-free guidance; 1 switches it off (default: 6)")
    add("--shift", type=float, help="flow shift (default: 8)")
    add("--fps", type=int, help="frames per second (default: 24, or those of --video_path)")
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
    add("--use_compress", action="store_true", help="keep only the best tokens of finished blocks")
    add("--budget_block", type=int, default=1, help="blocks' worth of tokens kept so (default: 1)")
    add("--use_kvrange", action="store_true", help="let blocks see only the newest finished ones")
    add("--kvrange", type=int, default=0, help="how many finished blocks they see then (default: 0)")
    add("--kv_bits", type=int, choices=BITS, help="keep keys and values of finished blocks in so many bits")
    add("--kv_offload", action="store_true", help="keep keys and values of finished blocks in host memory")
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
    for name, least in (("budget_block", 1), ("kvrange", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(args, name)}.")
    check_device(args.device)
    source = resolve_model(args.model_id, args.device)
    info = _check_conditions(args)
    height, width = _frame_size(args, source.defaults, info)
    given = {**vars(args), "height": height, "width": width}
    if args.fps is None and args.video_path is not None and info.fps:
        given["fps"] = round(info.fps)
    if args.causal_block_size is None:
        window = min(args.num_frames or source.defaults["num_frames"], args.base_num_frames)
        given["causal_block_size"] = max(1, min(source.defaults["causal_block_size"], latent_frames(window)))
    settings = source.video_settings(**given)
    if args.teacache_thresh is not None and not (
        math.isfinite(args.teacache_thresh) and args.teacache_thresh >= 0
    ):
        raise ValueError(
            f"teacache_thresh must be a finite number of at least 0, got {args.teacache_thresh}."
        )
    cache = source.method_config(
        args.method,
        args.preset,
        threshold=args.teacache_thresh,
        use_ret_steps=args.use_ret_steps,
        forecast=args.forecast,
        causal_attention=args.causal_attention,
        budget_block=args.budget_block if args.use_compress else None,
        kvrange=args.kvrange if args.use_kvrange and not args.use_compress else None,
        kv_bits=args.kv_bits,
        kv_offload=args.kv_offload,
    )
    prompt = (source.defaults["prompt"] if args.prompt is None else args.prompt).strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    negative = source.defaults["negative_prompt"] if args.negative_prompt is None else args.negative_prompt
    check_streaming(settings, cache, arrives=args.end_image is not None)
    condition, history = _read_conditions(args, settings)
    plan_windows(settings, 0 if condition.prefix is None else condition.prefix.shape[1])
    output = _output_path(args, settings, cache, prompt)
    return Job(source, settings, cache, condition, prompt, negative, history, output, args.method)


def _check_conditions(args: argparse.Namespace) -> VideoInfo | None:
    """Refuse what does not go together or cannot be read; rate and size of what the video starts with."""
    if args.end_image is not None and args.image is None:
        raise ValueError("end_image needs image as well: the video has to start somewhere.")
    if args.video_path is not None and args.image is not None:
        raise ValueError("video_path and image exclude each other: the video starts with one of them.")
    if args.video_path is not None and args.overlap_history is None:
        raise ValueError(
            "video_path needs overlap_history: how many frames of it to continue from; 17 is usual."
        )
    info = None
    for name, read in (("end_image", read_image), ("image", read_image), ("video_path", probe_video)):
        path = getattr(args, name)
        if path is None:
            continue
        try:
            found = read(path)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        info = found if name == "video_path" else VideoInfo(1, 0.0, *found.shape[:2])
    return info


def _frame_size(
    args: argparse.Namespace, defaults: dict[str, Any], start: VideoInfo | None
) -> tuple[int, int]:
    """Height and width; an upright start turns the frame upright."""
    height, width = defaults["height"], defaults["width"]
    if args.resolution != "auto":
        height, width = RESOLUTIONS[args.resolution]
    if start is not None and (start.height > start.width) != (height > width) and height != width:
        height, width = width, height
    return height if args.height is None else args.height, width if args.width is None else args.width


def _read_conditions(args: argparse.Namespace, settings: VideoSettings) -> tuple[Condition, Frames | None]:
    """What the video starts from and arrives at; and the video that it continues, all in its size."""
    size = (settings.height, settings.width)
    if args.video_path is not None:
        history, _ = read_video(args.video_path, size)
        overlap = settings.overlap_history
        if len(history) < overlap:
            raise ValueError(f"video_path has {len(history)} frames, fewer than overlap_history ({overlap}).")
        return Condition(prefix=to_float(history[-overlap:])), history
    first, last = (
        None if path is None else to_float(resize_and_crop(read_image(path)[None], *size))
        for path in (args.image, args.end_image)
    )
    return Condition(prefix=first, last=last), None


def _output_path(
    args: argparse.Namespace, settings: VideoSettings, cache: FlowCacheConfig, prompt: str
) -> Path:
    """The video's path; other settings never share a name, the same ones always do."""
    folder = writable_folder("outdir", args.outdir / args.expname)
    tag = args.method if args.method in ("vanilla", "causal") else f"{args.method}_{args.preset}"
    sources = [str(path) for path in (args.image, args.end_image, args.video_path)]
    told = repr((prompt, args.negative_prompt, args.model_id, settings, cache, sources))
    digest = hashlib.sha256(told.encode()).hexdigest()[:6]
    return (
        folder / f"{words_of(prompt)}_{tag}_seed{settings.seed}_steps{settings.inference_steps}_{digest}.mp4"
    )


def run(args: argparse.Namespace, job: Job) -> tuple[Trace, Path]:
    """Load, generate, write; returns the trace and the video's path."""
    trace = Trace(method=job.method)
    with trace.timer("load"):
        pipeline = load_pipeline(job.source, args.device, args.offload)
    pipeline.set_progress_bar_config(desc=job.method, unit="step")
    skip = 0
    with VideoWriter(job.output, job.settings.fps) as writer:
        if job.history is not None:
            writer.write(job.history)
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
    return trace, job.output


def main() -> int:
    """Parse, check, run; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args()
    return run_program(lambda: prepare(args), lambda job: run(args, job))


if __name__ == "__main__":
    sys.exit(main())
