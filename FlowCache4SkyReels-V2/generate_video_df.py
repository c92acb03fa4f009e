"""Generate a video with SkyReels-V2 diffusion forcing, with or without FlowCache.

    python generate_video_df.py --prompt "a red circle moves right over a dark background"

Writes ``OUTDIR/EXPNAME/<prompt>_<method>_seed<seed>_steps<steps>_<digest of all settings>.mp4``, and beside
it ``.trace.json`` and ``.reuse.png``, the map of which block skipped which step. While it runs, the video
grows as ``.part.mp4``, which can be played at any moment.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from flowcache import Trace
from flowcache.command_line import (
    RESUME_HELP,
    Parser,
    add_target_flags,
    check_device,
    check_tuning,
    load_and_tune,
    output_file,
    run_program,
    target_of,
    words_of,
)
from flowcache.config import DEFAULT_PRESET
from flowcache.resume import ResumeFile
from flowcache.tuning import Tuning
from flowcache.video import (
    Frames,
    VideoInfo,
    probe_video,
    read_image,
    read_video,
    resize_and_crop,
    to_float,
)
from skyreels_v2 import Condition, VideoSettings, resolve_model
from skyreels_v2.command_line import RULES, add_video_flags, cache_of, frame_size, settings_of
from skyreels_v2.sampler import SkyReelsSampler
from skyreels_v2.windows import check_streaming, plan_windows


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    sampler: SkyReelsSampler
    condition: Condition
    prompt: str
    history: Frames | None
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
    check_device(args.device)
    source = resolve_model(args.model_id, args.device)
    info = _check_conditions(args)
    upright = None if info is None else info.height > info.width
    height, width = frame_size(args, source, upright)
    fps = args.fps
    if fps is None and args.video_path is not None and info.fps:
        fps = round(info.fps)
    settings = settings_of(args, source, height=height, width=width, fps=fps)
    target = target_of(args, {name: getattr(args, name) for name in ("preset", *RULES)})
    cache = cache_of(args, source, settings)
    prompt = (source.defaults["prompt"] if args.prompt is None else args.prompt).strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    check_streaming(settings, cache, arrives=args.end_image is not None)
    condition, history = _read_conditions(args, settings)
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
    output, resume = output_file("outdir", _output_path(args, sampler, prompt, tuning)), None
    identity = sampler.identity(prompt, condition, history) if args.resume else {}
    if tuning is not None:
        check_tuning(tuning)
        identity["tuning"] = tuning.identity
    if args.resume:
        resume = ResumeFile(output, identity, args.device)
    return Job(sampler, condition, prompt, history, output, resume, tuning)


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
    args: argparse.Namespace, sampler: SkyReelsSampler, prompt: str, tuning: Tuning | None
) -> Path:
    """The video's path; other settings never share a name, the same ones always do."""
    folder, settings = args.outdir / args.expname, sampler.video
    tag = args.method
    if args.method not in ("vanilla", "causal"):
        tag += f"_{tuning.target}" if tuning else f"_{args.preset or DEFAULT_PRESET}"
    sources = [str(path) for path in (args.image, args.end_image, args.video_path)]
    told = repr((prompt, args.negative_prompt, args.model_id, settings, sampler.cache, sources))
    digest = hashlib.sha256(told.encode()).hexdigest()[:6]
    return (
        folder / f"{words_of(prompt)}_{tag}_seed{settings.seed}_steps{settings.inference_steps}_{digest}.mp4"
    )


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
