"""Sample a benchmark with MAGI-1, with or without FlowCache, on all GPUs of a machine or of many.

    python sample_video.py --yaml_config yaml_config/sample/flowcache_vbench.yaml --dimension scene
    torchrun --nproc_per_node 8 --nnodes 2 ... sample_video.py --yaml_config ...

Any key of the YAML file or of the configuration that it names can be set: ``--num_steps 16 --end=10``. Videos
that are there are not made again; the folder also holds their traces and ``manifest.jsonl``. With
``--ways vanilla flowcache:fast`` ways take turns, and each gets a folder.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # Ctrl-C while libraries are imported, which takes seconds
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))

# Transformers warns about every image processor that lacks torchvision; none of them is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import yaml

from flowcache.benchmark.options import BenchmarkOptions, add_benchmark_flags, given_flags
from flowcache.benchmark.physics_iq import SECONDS
from flowcache.benchmark.ranks import Rank, device_of, list_devices
from flowcache.benchmark.sampling import SamplingJob, run_on
from flowcache.benchmark.turns import Turns, new_work, with_way
from flowcache.command_line import Parser
from flowcache.knobs import knobs_of
from flowcache.methods import DEFAULT_PRESET
from flowcache.running import run_checked
from flowcache.unread import refuse_unread
from flowcache.user_files import expand_path
from magi1.command_line import add_method_flags, make_sampler, split_overrides, unread_options
from magi1.config import RULES, FlowCacheOptions, RuntimeSection
from magi1.config_files import build, cast, check_keys, read_file, without_unread
from magi1.model_source import SMALL, ModelSource, resolve_model

FOLDER = Path(__file__).resolve().parent
#: What ``reuse_strategy`` stands for.
STRATEGIES = {"chunkwise": "flowcache", "all": "teacache", "none": "vanilla", "original": "vanilla"}
_OURS = ("config_file", "reuse_strategy", "preset")


@dataclass(frozen=True)
class Settings:
    """A YAML file with the command line over it, sorted by who reads it."""

    benchmark: BenchmarkOptions
    reuse: FlowCacheOptions
    config_file: Path
    overrides: Mapping[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """The flags; keys of the configuration come without one."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--yaml_config", type=Path, default=FOLDER / "yaml_config" / "sample" / "flowcache_vbench.yaml")
    add("--config_file", type=Path, help="model and video, over the file's")
    add("--reuse_strategy", choices=STRATEGIES, help="another way to name the method")
    add_method_flags(parser, None)
    add_benchmark_flags(parser)
    return parser


def read_settings(args: argparse.Namespace, rest: list[str]) -> Settings:
    """The YAML file, with what was given over it; fills in method and preset.

    Raises:
        ValueError: a key is unknown or a value wrong; the key and its place are named.
    """
    path = args.yaml_config
    if rest and not rest[0].startswith("-"):  # the original takes the file without a flag
        path, rest = expand_path(rest[0], "yaml_config"), rest[1:]
    overrides, for_reuse = split_overrides(rest, vars(args))
    content = dict(read_file(path, yaml.safe_load, "YAML"))
    where = str(path)
    strategy = cast(content.pop("reuse_strategy", "chunkwise"), "str", "reuse_strategy", where)
    preset = cast(content.get("preset", DEFAULT_PRESET), "str", "preset", where)
    strategy = args.reuse_strategy or strategy
    content = without_unread(content, where)
    benchmark_keys, reuse_keys = (
        [f.name for f in fields(kind)] for kind in (BenchmarkOptions, FlowCacheOptions)
    )
    check_keys(content, [*benchmark_keys, *reuse_keys, *_OURS], where)
    if strategy not in STRATEGIES:
        raise ValueError(f"{where}: reuse_strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    args.method = args.method or STRATEGIES[strategy]
    args.preset = args.preset or preset
    chosen = {key: content[key] for key in benchmark_keys if key in content}
    if isinstance(chosen.get("gpus"), int):  # a single GPU looks like a number
        chosen["gpus"] = str(chosen["gpus"])
    reuse = {key: content[key] for key in reuse_keys if key in content}
    return Settings(
        build(BenchmarkOptions, chosen, where, given_flags(args)),
        build(FlowCacheOptions, reuse, where, for_reuse),
        args.config_file or _find(content.get("config_file"), where),
        overrides,
    )


def _find(name: Any, where: str) -> Path:
    """A configuration that a YAML file names, seen from here or from this program's folder."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: config_file must name a file, such as config/sample/vbench.json.")
    path = expand_path(name, f"{where}: config_file")
    return path if path.is_file() else FOLDER / name


def prepare(args: argparse.Namespace, rest: list[str]) -> tuple[list[str], SamplingJob | Turns]:
    """Check all that was asked for; returns this machine's devices and the work.

    Raises:
        ValueError: one sentence that names the argument and the fix.
    """
    settings, rank = read_settings(args, rest), Rank.from_environment(os.environ)
    options = settings.benchmark
    devices = list_devices(*options.devices_text(os.environ))
    device = device_of(rank, devices)
    source = resolve_model(settings.config_file, settings.overrides, args.model, device)
    if options.benchmark == "physicsiq":
        source = _of_physics_iq(source, settings.overrides)
    flags = {way: with_way(args, way) for way in args.ways or ()} or {args.method: args}
    refuse_unread(*(unread_options(way_args, settings.reuse, source.config) for way_args in flags.values()))
    knobs = {name: getattr(settings.reuse, name) for name in RULES}
    samplers = {}
    for way, way_args in flags.items():
        reuse = replace(settings.reuse, **knobs_of(way_args.method, knobs))
        samplers[way] = make_sampler(way_args, source, reuse, device)
    for way, sampler in samplers.items():
        sampler.method, sampler.shows_steps = way, False
    runtime = source.config.runtime_config
    samples = options.list_samples(runtime.seed, runtime.fps, small=runtime.load == str(SMALL))
    name = "vanilla" if args.method == "vanilla" else f"{args.method}_{args.preset}"
    name = "ways" if args.ways else name
    output = Path(options.base_save_path or f"outputs/magi1/{options.benchmark}_{name}").expanduser()
    work = new_work(
        "MAGI-1", _describe(runtime), output, samples, samplers, rank, bool(args.ways), options.keep_going
    )
    work.check()
    return devices, work


def _describe(runtime: RuntimeSection) -> str:
    return (
        f"{runtime.num_frames} frames of {runtime.video_size_w} x {runtime.video_size_h}, "
        f"{runtime.num_steps} steps, {runtime.window_size} chunks at once"
    )


def _of_physics_iq(source: ModelSource, overrides: Mapping[str, Any]) -> ModelSource:
    """The source with videos of the benchmark's length, unless the command line asks for longer ones."""
    config = source.config
    wanted, given = math.ceil(SECONDS * config.runtime_config.fps), config.runtime_config.num_frames
    if "num_frames" not in overrides:
        runtime = replace(config.runtime_config, num_frames=wanted)
        return replace(source, config=replace(config, runtime_config=runtime))
    if given < wanted:
        raise ValueError(f"num_frames must be at least {wanted} for physicsiq, {SECONDS} s, got {given}.")
    return source


def main() -> int:
    """Parse, check, sample; 2 for bad input, 1 for a failure."""
    args, rest = build_parser().parse_known_args()
    return run_checked(lambda: prepare(args, rest), lambda found: run_on(*found))


if __name__ == "__main__":
    sys.exit(main())
