"""Generate a video with MAGI-1, with or without FlowCache.

    python generate_video.py --config_file config/single_run/4.5B_distill.json --mode t2v --prompt "..."

Any key of the configuration can be set: ``--num_steps 16 --seed=7``. Writes the video, and beside it
``.trace.json`` and ``.reuse.png``, the map of which chunk skipped which step.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import yaml

from flowcache import Trace
from flowcache.command_line import Parser, check_device, output_file, run_program, words_of
from flowcache.video import Frames, VideoWriter, read_image, resize_and_crop, stream_video, to_float, to_uint8
from magi1.captions import CaptionSwitches, SpecialTokens
from magi1.config import FRAMES, FlowCacheOptions, MagiConfig, RuntimeSection
from magi1.config_files import COMMAND_LINE, check_keys, without_unread
from magi1.guidance import PREVIOUS_WEIGHT
from magi1.methods import METHODS, PRESETS, method_config
from magi1.model_source import ModelSource, load_pipeline, resolve_model
from magi1.request import VideoRequest

FOLDER = Path(__file__).resolve().parent
DEFAULT_PROMPT = "a red circle moves right over a dark background"
PREFIX_SECONDS = 5  # of a video that is continued


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, checked, before any weight is read."""

    source: ModelSource
    request: VideoRequest
    output: Path
    method: str


def build_parser() -> argparse.ArgumentParser:
    """The original's flags, then ours."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--config_file", type=Path, default=FOLDER / "config" / "single_run" / "4.5B_distill.json")
    add("--mode", choices=["t2v", "i2v", "v2v"], default="t2v")
    add("--prompt", default=DEFAULT_PROMPT, help="what to show")
    add("--image_path", type=Path, help="first frame, for i2v")
    add("--prefix_video_path", type=Path, help="video to continue, for v2v: its last seconds, at most 5")
    add("--output_path", type=Path, help="the mp4 (default: under outputs/)")
    add("--additional_config", type=Path, help="FlowCache's options, YAML")
    add("--method", choices=METHODS, default="flowcache", help="(default: flowcache)")
    add("--preset", choices=PRESETS, default="fast", help="threshold, and how reuse is done (default: fast)")
    add(
        "--forecast",
        choices=["hold_residual", "hold_displacement", "hold_velocity"],
        help="overrides the preset's",
    )
    add("--model", choices=["auto", "official", "small"], default="auto", help="(default: auto)")
    add(
        "--special_tokens",
        type=Path,
        help="special_tokens.npz of the official code, for PAD_HQ=1 and such (default: SPECIAL_TOKEN_PATH)",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def parse_overrides(rest: list[str]) -> dict[str, Any]:
    """``--key value`` or ``--key=value``, values read as YAML: ``--noise2clean_kvrange "[5, 4, 3, 2]"``."""
    overrides, words = {}, iter(rest)
    for word in words:
        flag, equals, text = word.partition("=")
        if not re.fullmatch(r"--\w+", flag):
            raise ValueError(f"arguments must be pairs of --key value, or --key=value, got {word!r}.")
        if not equals:
            text = next(words, "--")
        if text.startswith("--"):
            raise ValueError(f"arguments must be pairs of --key value, but {flag} has no value.")
        try:
            overrides[flag[2:]] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{flag[2:]} has a value that cannot be read: {text!r}.") from error
    return overrides


def split_overrides(
    overrides: Mapping[str, Any], flags: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those that belong to the configuration, and those to FlowCache's options; ``flags`` are neither."""
    overrides = without_unread(overrides, COMMAND_LINE)
    options = list(FlowCacheOptions.__dataclass_fields__)
    check_keys(overrides, [*MagiConfig.keys(), *options, *flags], COMMAND_LINE)
    for_options = {key: value for key, value in overrides.items() if key in options}
    return {key: value for key, value in overrides.items() if key not in options}, for_options


def prepare(args: argparse.Namespace, rest: list[str]) -> Job:
    """Check all that was asked for.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    overrides, for_options = split_overrides(parse_overrides(rest), vars(args))
    device = check_device(args.device)
    additional = args.additional_config or FOLDER / "yaml_config" / "single_run" / "config.yaml"
    options = FlowCacheOptions.from_file(additional, for_options)
    source = resolve_model(args.config_file, overrides, args.model, device)
    offload = source.config.engine_config.kv_offload
    cache = method_config(
        args.method, options, preset=args.preset, forecast=args.forecast, kv_offload=offload
    )
    _check_cache_size(options, source)
    prompt = args.prompt.strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    switches, tokens = _read_special_tokens(args, source)
    request = VideoRequest(
        prompt=prompt,
        config=source.config,
        cache=cache,
        prefix=_read_prefix(args, source.config.runtime_config),
        switches=switches,
        special_tokens=tokens,
        discard_nearly_clean=options.discard_nearly_clean_chunk,
        previous_weight=_previous_weight(os.environ),
    )
    output = _default_output(args, source) if args.output_path is None else _mp4(args.output_path)
    return Job(source, request, output_file("output_path", output), args.method)


def _check_cache_size(options: FlowCacheOptions, source: ModelSource) -> None:
    live = source.config.runtime_config.window_size
    if options.compress_kv_cache and options.total_cache_chunk_nums <= live:
        raise ValueError(
            f"total_cache_chunk_nums must be above window_size ({live}), as so many chunks are live at once, "
            f"got {options.total_cache_chunk_nums}."
        )


def _read_special_tokens(
    args: argparse.Namespace, source: ModelSource
) -> tuple[CaptionSwitches, SpecialTokens | None]:
    switches = CaptionSwitches.from_environment()
    if not switches.any:
        return switches, None
    path = args.special_tokens or os.environ.get("SPECIAL_TOKEN_PATH")
    if not path:
        raise ValueError(
            "special tokens are asked for by the environment (PAD_HQ and such), but their table is not: give "
            "special_tokens, or set SPECIAL_TOKEN_PATH, to special_tokens.npz of the official code."
        )
    return switches, SpecialTokens.from_file(path, source.config.model_config.caption_channels)


def _previous_weight(environment: Mapping[str, str]) -> float:
    """As the original's variable says."""
    text = environment.get("prev_chunks_scale", "").strip()
    try:
        return float(text) if text else PREVIOUS_WEIGHT
    except ValueError as error:
        raise ValueError(f"the environment's prev_chunks_scale must be a number, got {text!r}.") from error


def _read_prefix(args: argparse.Namespace, runtime: RuntimeSection) -> torch.Tensor | None:
    """What the video starts from, in its size: an image, or the last seconds of a video."""
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
        return to_float(_last_seconds(args.prefix_video_path, runtime.fps, size))
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error


def _last_seconds(path: Path, fps: int, size: tuple[int, int]) -> Frames:
    """The last whole seconds of a video, at most five, at the rate of the video to make.

    Of one shorter than a second, all that makes whole latent frames. No more than what may be needed is held.
    """
    count, last = 0, deque[Frames](maxlen=PREFIX_SECONDS * fps)
    for frame in stream_video(path, fps):
        last.append(frame)
        count += 1
    kept = min(count // fps, PREFIX_SECONDS) * fps or count
    kept = max(kept // FRAMES * FRAMES, 1)
    return np.stack([resize_and_crop(frame[None], *size)[0] for frame in list(last)[-kept:]])


def _mp4(path: Path) -> Path:
    """The path, with the suffix of what is written if it has none."""
    if path.name and path.suffix.lower() not in ("", ".mp4"):
        raise ValueError(f"output_path must end in .mp4, which is what is written, got {path}.")
    return path if path.suffix or path.is_dir() else path.with_suffix(".mp4")


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
        for part in pipeline.stream(job.request, trace):
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
