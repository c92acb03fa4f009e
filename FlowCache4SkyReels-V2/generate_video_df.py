"""Generate a video with SkyReels-V2 diffusion forcing, with or without FlowCache.

    python generate_video_df.py --prompt "a red circle moves right over a dark background"

Writes ``OUTDIR/EXPNAME/<prompt>_<task>_<method>_<preset>_seed<seed>_steps<steps>_<digest>.mp4``; the digest
is that of all settings and of the content of images, videos and weights. Beside it lie ``.trace.json`` and
``.reuse.png``, the map of which block skipped which step. While it runs, the video grows as ``.part.mp4``,
which can be played at any moment.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import (
    RESUME_HELP,
    Parser,
    add_target_flags,
    check_device,
    check_tuning,
    output_file,
    settle_seed,
    target_of,
)
from flowcache.naming import setting_words, video_name
from flowcache.resume import ResumeFile
from flowcache.running import load_and_tune, run_program
from flowcache.tuning import Target, Tuning
from flowcache.unread import refuse_unread
from flowcache.video import (
    Frames,
    VideoInfo,
    probe_video,
    read_image,
    resize_and_crop,
    to_float,
)
from skyreels_v2 import Condition, VideoSettings, resolve_model
from skyreels_v2.command_line import (
    RULES,
    add_video_flags,
    cache_of,
    drop_unread,
    frame_size,
    settings_of,
    settle_flags,
)
from skyreels_v2.conditions import check_prompts
from skyreels_v2.sampler import SkyReelsSampler, video_prefix
from skyreels_v2.windows import check_streaming, plan_windows


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    sampler: SkyReelsSampler
    condition: Condition
    prompt: str
    history: Path | None
    output: Path
    resume: ResumeFile | None
    tuning: Tuning | None


def build_parser() -> argparse.ArgumentParser:
    """The flags of every program of SkyReels-V2, then those of a single run."""
    parser = Parser(__doc__)
    add_video_flags(parser)
    add_target_flags(parser)
    add = parser.add_argument
    add("--prompt", help="what to show")
    add("--image", type=Path, help="first frame")
    add("--end_image", type=Path, help="last frame; needs --image")
    add("--video_path", type=Path, help="video to continue; needs --overlap_history")
    add("--outdir", type=Path, default=Path("outputs"), help="folder for the results (default: outputs)")
    add("--expname", default="skyreels_v2", help="folder within it (default: skyreels_v2)")
    add("--resume", action="store_true", help=RESUME_HELP)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def prepare(args: argparse.Namespace) -> Job:
    """Check all that was asked for.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    settle_flags(args)
    target = target_of(args, {name: getattr(args, name) for name in RULES})
    refuse_unread(drop_unread(args))
    args.seed = settle_seed(args.seed, args.resume)
    check_device(args.device)
    source = resolve_model(args.model_id, args.device)
    info, images = _read_given(args)
    upright = None if info is None else info.height > info.width
    height, width = frame_size(args, source, upright)
    fps = args.fps
    if fps is None and args.video_path is not None:
        fps = info.fps
    settings = settings_of(args, source, height=height, width=width, fps=fps)
    refuse_unread(_unread_overlap(args, settings))
    cache = cache_of(args, source, settings)
    prompt = (source.defaults["prompt"] if args.prompt is None else args.prompt).strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    check_prompts(prompt, args.negative_prompt)
    check_streaming(settings, cache, arrives=args.end_image is not None)
    condition = _condition(args, settings, images)
    plan_windows(settings, 0 if condition.prefix is None else condition.prefix.shape[1])
    sampler = SkyReelsSampler(
        source=source,
        video=settings,
        cache=cache,
        method=args.method,
        device=args.device,
        negative_prompt=args.negative_prompt,
        offload=args.offload,
    )
    tuning = None if target is None else sampler.tuning(target, args.profile)
    identity, resume = sampler.identity(prompt, condition, args.video_path), None
    if tuning is not None:
        check_tuning(tuning)
        identity["tuning"] = tuning.identity
    name = video_name(prompt, _name_words(args, settings, target, cache), identity)
    output = output_file("outdir", args.outdir / args.expname / name)
    if args.resume:
        resume = ResumeFile(output, identity, args.device)
    return Job(sampler, condition, prompt, args.video_path, output, resume, tuning)


def _unread_overlap(args: argparse.Namespace, video: VideoSettings) -> dict[str, str]:
    """Why nothing reads flags for frames that are taken over, for those that the user typed."""
    if args.video_path is not None or (video.num_frames > video.base_num_frames and not video.streaming):
        return {}
    unread = {"overlap_history": "it needs video_path, or windows"}
    if args.image is None:
        unread["addnoise_condition"] = "it needs image, video_path or windows"
    return {name: reason for name, reason in unread.items() if name in args.typed}


def _read_given(args: argparse.Namespace) -> tuple[VideoInfo | None, dict[str, Frames]]:
    """Refuse what does not go together or cannot be read.

    Returns:
        Rate and size of what the video starts with, and images by their flags.
    """
    if args.end_image is not None and args.image is None:
        raise ValueError("end_image needs image as well: the video has to start somewhere.")
    if args.video_path is not None and args.image is not None:
        raise ValueError("video_path and image exclude each other: the video starts with one of them.")
    if args.video_path is not None and args.overlap_history is None:
        raise ValueError(
            "video_path needs overlap_history: how many frames of it to continue from; 17 is usual."
        )
    info, images = None, {}
    for name in ("end_image", "image", "video_path"):
        path = getattr(args, name)
        if path is None:
            continue
        try:
            if name == "video_path":
                info = probe_video(path)
            else:
                images[name] = read_image(path)
                info = VideoInfo(1, None, *images[name].shape[:2])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return info, images


def _condition(args: argparse.Namespace, settings: VideoSettings, images: dict[str, Frames]) -> Condition:
    """What the video starts from and arrives at, in its size."""
    if args.video_path is not None:
        try:
            return Condition(prefix=video_prefix(args.video_path, settings))
        except ValueError as error:
            raise ValueError(f"video_path: {error}") from error
    size = (settings.height, settings.width)
    first, last = (
        to_float(resize_and_crop(images[name][None], *size)) if name in images else None
        for name in ("image", "end_image")
    )
    return Condition(prefix=first, last=last)


def _name_words(
    args: argparse.Namespace, video: VideoSettings, target: Target | None, cache: FlowCacheConfig
) -> list[str]:
    """What tells the videos of a prompt apart at a glance."""
    task = "v2v" if args.video_path else "i2v" if args.image else "t2v"
    options = {name: getattr(args, name) for name in RULES}
    words = [task, *setting_words(args.method, args.preset, options, target, cache)]
    if video.streaming:
        words.append("streaming")
    return [*words, f"seed{video.seed}", f"steps{video.inference_steps}"]


def run(job: Job) -> tuple[Trace, Path]:
    """Load, generate, write; returns the trace and the video's path."""
    trace = Trace(method=job.sampler.method)
    skip = 0 if job.history is None else job.sampler.video.overlap_history
    with job.resume or nullcontext() as resume:
        load_and_tune(job.sampler, job.tuning, trace)
        job.sampler.write(
            job.prompt, job.condition, job.output, trace, before=job.history, skip=skip, resume=resume
        )
    return trace, job.output


def main() -> int:
    """Parse, check, run; 2 for bad input, 1 for a failure."""
    args = build_parser().parse_args()
    return run_program(lambda: prepare(args), run)


if __name__ == "__main__":
    sys.exit(main())
