"""Generate a video with MAGI-1, with or without FlowCache.

    python generate_video.py --config_file config/single_run/4.5B_distill.json --mode t2v --prompt "..."

Any key of the configuration can be set: ``--num_steps 16 --seed=7``. Without ``--output_path`` the video is
``outputs/magi1/<prompt>_<task>_<method>_<preset>_seed<seed>_steps<steps>_<digest>.mp4``; the digest is that
of all settings and of the content of images, videos and weights. Beside it lie ``.trace.json`` and
``.reuse.png``, the map of which chunk skipped which step.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

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
    output_file,
    settle_seed,
    target_of,
)
from flowcache.knobs import knobs_of
from flowcache.naming import setting_words, video_name
from flowcache.resume import ResumeFile
from flowcache.running import load_and_tune, run_program
from flowcache.tuning import Target, Tuning
from flowcache.unread import refuse_unread
from magi1.command_line import add_method_flags, make_sampler, split_overrides, unread_options
from magi1.config import RULES, FlowCacheOptions
from magi1.model_source import resolve_model
from magi1.request import VideoRequest
from magi1.sampler import MagiSampler

FOLDER = Path(__file__).resolve().parent
DEFAULT_PROMPT = "a red circle moves right over a dark background"


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    sampler: MagiSampler
    request: VideoRequest
    output: Path
    resume: ResumeFile | None
    tuning: Tuning | None


def build_parser() -> argparse.ArgumentParser:
    """The original's flags, then ours."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config_file", type=Path, default=FOLDER / "config" / "single_run" / "4.5B_distill.json")
    add("--mode", choices=["t2v", "i2v", "v2v"], default="t2v")
    add("--prompt", default=DEFAULT_PROMPT, help="what to show")
    add("--image_path", type=Path, help="first frame, for i2v")
    add("--prefix_video_path", type=Path, help="video to continue, for v2v: its last seconds, at most 5")
    add("--output_path", type=Path, help="the mp4 (default: a name of its own in outputs/magi1)")
    add("--additional_config", type=Path, help="FlowCache's options, YAML")
    add_method_flags(parser)
    add("--resume", action="store_true", help=RESUME_HELP)
    add_target_flags(parser)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def prepare(args: argparse.Namespace, rest: list[str]) -> Job:
    """Check all that was asked for.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    overrides, for_options = split_overrides(rest, vars(args))
    if "seed" in overrides:
        overrides["seed"] = settle_seed(overrides["seed"], args.resume)
    device = check_device(args.device)
    additional = args.additional_config or FOLDER / "yaml_config" / "single_run" / "config.yaml"
    options = FlowCacheOptions.from_file(additional, for_options)
    target = target_of(args, {name: getattr(options, name) for name in RULES})
    source = resolve_model(args.config_file, overrides, args.model, device)
    refuse_unread(unread_options(args, options, source.config))
    sampler = make_sampler(args, source, options, args.device)
    prompt = args.prompt.strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    request = sampler.request(prompt, _read_prefix(args, sampler))
    identity, tuning = sampler.identity(request), None
    if target is not None:
        tuning = sampler.tuning(target, DEFAULT_PROMPT, args.profile)
        check_tuning(tuning)
        identity["tuning"] = tuning.identity
    output = args.output_path
    if output is None:
        words = _name_words(args, sampler, options, target)
        output = Path("outputs") / "magi1" / video_name(prompt, words, identity)
    output = output_file("output_path", _mp4(output))
    resume = ResumeFile(output, identity, args.device) if args.resume else None
    return Job(sampler, request, output, resume, tuning)


def _read_prefix(args: argparse.Namespace, sampler: MagiSampler) -> torch.Tensor | None:
    """What the video starts from, in its size: an image, or the last seconds of a video."""
    wanted = {"i2v": "image_path", "v2v": "prefix_video_path"}.get(args.mode)
    for name in ("image_path", "prefix_video_path"):
        given = getattr(args, name)
        if (name == wanted) != (given is not None):
            verb = "needs" if name == wanted else "does not take"
            raise ValueError(f"mode {args.mode} {verb} {name}.")
    if wanted is None:
        return None
    try:
        if wanted == "image_path":
            return sampler.image_prefix(args.image_path)
        return sampler.video_prefix(args.prefix_video_path)
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error


def _mp4(path: Path) -> Path:
    """The path, with the suffix of what is written if it has none."""
    if path.name and path.suffix.lower() not in ("", ".mp4"):
        raise ValueError(f"output_path must end in .mp4, which is what is written, got {path}.")
    return path if path.suffix or os.path.isdir(path) else path.with_suffix(".mp4")


def _name_words(
    args: argparse.Namespace, sampler: MagiSampler, options: FlowCacheOptions, target: Target | None
) -> list[str]:
    """What tells the videos of a prompt apart at a glance."""
    runtime = sampler.runtime
    chosen = knobs_of(args.method, {name: getattr(options, name) for name in RULES})
    words = setting_words(args.method, args.preset, chosen, target, sampler.cache)
    return [args.mode, *words, f"seed{runtime.seed}", f"steps{runtime.num_steps}"]


def run(job: Job) -> tuple[Trace, Path]:
    """Load, generate, write chunk by chunk; returns the trace and the video's path."""
    trace = Trace(method=job.sampler.method)
    with job.resume or nullcontext() as resume:
        load_and_tune(job.sampler, job.tuning, trace)
        request = replace(job.request, cache=job.sampler.cache)
        job.sampler.write(request, job.output, trace, resume)
    return trace, job.output


def main() -> int:
    """Parse, check, run; 2 for bad input, 1 for a failure."""
    args, rest = build_parser().parse_known_args()
    return run_program(lambda: prepare(args, rest), run)


if __name__ == "__main__":
    sys.exit(main())
