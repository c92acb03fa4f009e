"""Generate a video with MAGI-1, with or without FlowCache.

    python generate_video.py --config_file config/single_run/flowcache_t2v.json --mode t2v --prompt "..."

Any key of the configuration can be set: ``--num_steps 16 --seed 7``. Writes the video, and beside it
``.trace.json`` and ``.reuse.png``, the map of which chunk skipped which step.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import yaml

from flowcache import FlowCacheConfig, Trace
from flowcache.command_line import Parser, run_program, words_of, writable_folder
from flowcache.video import VideoWriter, read_image, read_video, resize_and_crop, to_float, to_uint8
from magi1.captions import CaptionSwitches, SpecialTokens
from magi1.config import FlowCacheOptions
from magi1.methods import METHODS, method_config
from magi1.model_source import ModelSource, load_pipeline, resolve_model

FOLDER = Path(__file__).resolve().parent
DEFAULT_PROMPT = "a red circle moves right over a dark background"


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    source: ModelSource
    cache: FlowCacheConfig
    options: FlowCacheOptions
    prompt: str
    prefix: torch.Tensor | None
    switches: CaptionSwitches
    special_tokens: SpecialTokens | None
    output: Path
    method: str


def build_parser() -> argparse.ArgumentParser:
    """The original's flags, then ours."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config_file", type=Path, default=FOLDER / "config" / "single_run" / "flowcache_t2v.json")
    add("--mode", choices=["t2v", "i2v", "v2v"], default="t2v")
    add("--prompt", default=DEFAULT_PROMPT, help="what to show")
    add("--image_path", type=Path, help="first frame, for i2v")
    add("--prefix_video_path", type=Path, help="video to continue, for v2v: its last seconds, at most 5")
    add("--output_path", type=Path, help="the mp4 (default: under outputs/)")
    add("--additional_config", type=Path, help="FlowCache's options, YAML")
    add("--method", choices=METHODS, default="flowcache", help="(default: flowcache)")
    add("--paper", action="store_true", help="do as the original FlowCache does, see magi1/methods.py")
    add("--forecast", choices=["hold_residual", "hold_displacement", "hold_velocity"])
    add("--model", choices=["auto", "official", "small"], default="auto", help="(default: auto)")
    add("--special_tokens", type=Path, help="special_tokens.npz of the official code, for PAD_HQ=1 and such")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def parse_overrides(rest: list[str]) -> dict[str, Any]:
    """``--key value`` pairs, values read as YAML: ``--noise2clean_kvrange "[5, 4, 3, 2]"``."""
    if len(rest) % 2 or any(not flag.startswith("--") for flag in rest[::2]):
        raise ValueError(f"arguments must be pairs of --key value, got {' '.join(rest)}.")
    return {flag[2:]: yaml.safe_load(value) for flag, value in zip(rest[::2], rest[1::2], strict=True)}


def prepare(args: argparse.Namespace, rest: list[str]) -> Job:
    """Check all that was asked for.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    overrides = parse_overrides(rest)
    known = FlowCacheOptions.__dataclass_fields__
    for_options = {key: overrides.pop(key) for key in list(overrides) if key in known}
    additional = args.additional_config or FOLDER / "yaml_config" / "single_run" / "config.yaml"
    options = FlowCacheOptions.from_file(additional, for_options)
    cache = method_config(args.method, options, paper=args.paper, forecast=args.forecast)
    source = resolve_model(args.config_file, overrides, args.model)
    live = source.config.runtime_config.window_size
    if options.compress_kv_cache and options.total_cache_chunk_nums <= live:
        raise ValueError(
            f"total_cache_chunk_nums must be above window_size ({live}), as so many chunks are live at once, "
            f"got {options.total_cache_chunk_nums}."
        )
    prompt = args.prompt.strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    switches = CaptionSwitches.from_environment()
    tokens = None
    if switches.any:
        tokens = SpecialTokens.from_file(args.special_tokens or "example/assets/special_tokens.npz")
    prefix = _read_prefix(args, source)
    output = args.output_path or _default_output(args, source)
    writable_folder("output_path", output.parent)
    return Job(source, cache, options, prompt, prefix, switches, tokens, output, args.method)


def _read_prefix(args: argparse.Namespace, source: ModelSource) -> torch.Tensor | None:
    """What the video starts from, in its size: an image, or the last seconds of a video."""
    runtime = source.config.runtime_config
    size = (runtime.video_size_h, runtime.video_size_w)
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
            return to_float(resize_and_crop(read_image(args.image_path)[None], *size))
        frames, fps = read_video(args.prefix_video_path, size)
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    return to_float(frames[-_prefix_frames(len(frames), round(fps), runtime.temporal_downsample_factor) :])


def _prefix_frames(num_frames: int, fps: int, stride: int) -> int:
    """Whole seconds of a video, at most five; of one shorter than a second, as much as can be encoded."""
    count = min(num_frames // fps, 5) * fps if fps and num_frames >= fps else num_frames
    return max(count // stride * stride, 1)


def _default_output(args: argparse.Namespace, source: ModelSource) -> Path:
    runtime = source.config.runtime_config
    name = (
        f"{words_of(args.prompt)}_{args.mode}_{args.method}_seed{runtime.seed}_steps{runtime.num_steps}.mp4"
    )
    return Path("outputs") / "magi1" / name


def run(args: argparse.Namespace, job: Job) -> tuple[Trace, Path]:
    """Load, generate, write chunk by chunk; returns the trace and the video's path."""
    trace = Trace(method=job.method)
    with trace.timer("load"):
        pipeline = load_pipeline(job.source, args.device)
    pipeline.set_progress_bar_config(desc=job.method, unit="step")
    with VideoWriter(job.output, job.source.config.runtime_config.fps) as writer:
        for part in pipeline.stream(
            job.prompt,
            job.source.config,
            job.cache,
            job.prefix,
            job.switches,
            job.special_tokens,
            job.options.discard_nearly_clean_chunk,
            trace,
        ):
            with trace.timer("write"):
                writer.write(to_uint8(part.frames))
    trace.settings["model"] = job.source.config.runtime_config.load
    return trace, job.output


def main() -> int:
    """Parse, check, run; 2 for bad input, 1 for a failure."""
    args, rest = build_parser().parse_known_args()
    return run_program(lambda: prepare(args, rest), lambda job: run(args, job))


if __name__ == "__main__":
    sys.exit(main())
