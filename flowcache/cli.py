"""The command line: one program for videos and one for benchmarks, for every model.

    flowcache generate --model skyreels_v2 --prompt "a red circle moves right over a dark background"
    flowcache sample --model magi1 --benchmark vbench --methods vanilla flowcache:fast
    flowcache metrics ...    flowcache benchmark ...

``python -m flowcache`` is the same. ``flowcache generate --model MODEL --help`` lists the options of a model.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .adapter import Adapter, Start
from .benchmark.options import BenchmarkOptions
from .benchmark.physics_iq import SECONDS
from .benchmark.ranks import Rank, device_of, list_devices
from .benchmark.sampling import run_on
from .benchmark.turns import new_work, split_way
from .command_line import check_device, output_file
from .methods import DEFAULT_PRESET, MethodOptions
from .naming import setting_words, video_name
from .options import Given, OptionParser
from .resume import ResumeFile
from .running import run_checked, run_program
from .sampler import Sampler
from .trace import Trace
from .tuning import Target, Tuning
from .unread import CACHE_OPTIONS, SELECTORS, unread_options
from .video import Frames, VideoInfo, probe_video, read_image

logger = logging.getLogger(__name__)

#: Adapters by the name of their package; another model is another line.
MODELS = {"skyreels_v2": "skyreels_v2.adapter:SkyReelsV2", "magi1": "magi1.adapter:Magi1"}


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of a single video.

    Attributes:
        prompt: text to show.
        image: first frame.
        end_image: last frame; needs ``--image``.
        video_path: video to continue.
        output_path: the mp4.
        outdir: folder of the results.
        expname: folder within it.
        resume: save the state as the video grows, and resume from it if it exists.
        target_speedup: times fewer FLOPs than vanilla; finds the best setting.
        target_psnr: dB to the same video without reuse; finds the fastest setting.
        profile: file with the results of that search.
        device: cpu, cuda or cuda:1.
    """

    prompt: str | None = None
    image: Path | None = None
    end_image: Path | None = None
    video_path: Path | None = None
    output_path: Path | None = None
    outdir: Path = Path("outputs")
    expname: str | None = None
    resume: bool = False
    target_speedup: float | None = None
    target_psnr: float | None = None
    profile: Path | None = None
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")


#: Defaults that depend on the model or on other options.
_SHOWN = {
    "prompt": "the model's",
    "output_path": "OUTDIR/EXPNAME/NAME.mp4, NAME from the prompt and all settings",
    "expname": "name of the model's package",
    "profile": "in ~/.cache/flowcache",
    "device": "cuda if there is a GPU, otherwise cpu",
}


@dataclass(frozen=True)
class Job:
    """A video to make, checked, before any weight is read."""

    sampler: Sampler
    prompt: str
    start: Start
    output: Path
    resume: ResumeFile | None
    tuning: Tuning | None

    def run(self) -> tuple[Trace, Path]:
        """Load, generate, write; returns the trace and the video's path."""
        trace, sampler = Trace(method=self.sampler.method), self.sampler
        with self.resume or nullcontext() as resume:
            with trace.timer("load"):
                sampler.load()
            if self.tuning is not None:
                with trace.timer("tune"):
                    sampler.tune(self.tuning, trace)
            sampler.write(self.prompt, self.start, self.output, trace, resume=resume)
        return trace, self.output


def build_parser(model: type[Adapter], program: str) -> OptionParser:
    """The options of a program for a model."""
    kind = "one video" if program == "generate" else "videos of a benchmark"
    prog = f"flowcache {program} --model {model.package}"
    parser = OptionParser(f"{model.title}: {kind}.", prog=prog, usage="%(prog)s [options]")
    aliases = {name: (original,) for name, original in model.traits.names.items()}
    hidden = {"refresh_given", "coefficients", *model.lacks}
    methods = {"method": model.traits.methods}
    parser.add_fields("method", MethodOptions, aliases, {*hidden, *CACHE_OPTIONS}, choices=methods)
    parser.add_fields("KV cache", MethodOptions, aliases, hidden)
    if program == "generate":
        absent = {"image", "end_image", "video_path"} - model.inputs.keys()
        parser.add_fields("run", VideoOptions, model.inputs, absent, _SHOWN)
    else:
        parser.add_fields("benchmark", BenchmarkOptions)
        text = "methods to compare in turn, each in its own folder (default: --method alone)"
        parser.add_option("methods", str, text, ("ways",), nargs="+")
    text = "YAML file with any of these options; flags override it (default: the model's, or none)"
    parser.add_option("yaml_config", Path, text, ("additional_config",))
    model.add_flags(parser, program)
    return parser


def read_options(model: type[Adapter], program: str, words: Sequence[str]) -> Given:
    """Options of the command line, over those of the YAML file.

    Raises:
        ValueError: the file cannot be read, or typed options exclude each other.
    """
    given = build_parser(model, program).read(words, "yaml_config", model.options_file(program))
    with given.naming():
        model.settle(given)
    return given


def prepare_video(model: type[Adapter], words: Sequence[str]) -> Job:
    """Check everything that a video needs.

    Raises:
        ValueError: one sentence that names the option.
    """
    given = read_options(model, "generate", words)
    with given.naming():
        target = settle_target(given)
        options, unread = choose_method(given, model)
        given.refuse_unread(unread)
    device = str(check_device(given.get("device", VideoOptions().device)))
    settle_seed(given)
    images, info = read_inputs(given)
    chosen = model.resolve(given, device, info)
    given.refuse_unread(chosen.unread(given))
    with given.naming():
        config = chosen.configure(options)
    prompt = given.values.get("prompt", chosen.default_prompt).strip()
    if not prompt:
        raise ValueError("prompt must not be empty.")
    chosen.check_prompt(prompt)
    try:
        start = chosen.start(images.get("image"), images.get("end_image"), given.get("video_path"))
    except ValueError as error:
        raise ValueError(f"{given.spelled.get('video_path')}: {error}") from error
    chosen.check(config, start)
    sampler = Sampler(model=chosen, config=config, method=options.method, device=device)
    identity, tuning = sampler.identity(prompt, start), None
    if target is not None:
        tuning = sampler.tuning(target, given.get("profile"))
        if not os.path.exists(tuning.path):
            output_file("profile", tuning.path)
        tuning.check()
        identity["tuning"] = tuning.identity
    task = "v2v" if given.get("video_path") else "i2v" if given.get("image") else "t2v"
    selected = {given.spelled[name]: given.get(name) for name in SELECTORS}
    named = setting_words(options.method, options.preset, selected, target, config)
    output = output_path(given, model, video_name(prompt, [task, *named, *chosen.words], identity))
    return Job(
        sampler,
        prompt,
        start,
        output,
        ResumeFile(output, identity, device) if given.get("resume") else None,
        tuning,
    )


def prepare_samples(model: type[Adapter], words: Sequence[str]) -> tuple[list[str], Any]:
    """Check everything that a benchmark's videos need; returns this machine's devices and the work.

    Raises:
        ValueError: one sentence that names the option.
    """
    given = read_options(model, "sample", words)
    options = BenchmarkOptions(**given.pick(BenchmarkOptions))
    rank, devices = Rank.from_environment(os.environ), list_devices(*options.devices_text(os.environ))
    device, ways = device_of(rank, devices), given.get("methods")
    if ways and "method" in given.typed:
        raise ValueError("methods and method exclude each other: leave one of them out.")
    runs = {way: dict(zip(("method", "preset"), split_way(way), strict=True)) for way in ways or ()}
    with given.naming():
        runs = {
            way: choose_method(given.copy(**{k: v for k, v in run.items() if v}), model)
            for way, run in runs.items()
        }
        if not runs:
            alone = choose_method(given, model)
            runs = {alone[0].method: alone}
        given.refuse_unread(*(unread for _, unread in runs.values()))
    chosen = model.resolve(given, device, seconds=SECONDS if options.benchmark == "physicsiq" else None)
    given.refuse_unread(chosen.unread(given))
    samplers = {}
    for way, (method, _) in runs.items():
        with given.naming():
            config = chosen.configure(method)
        chosen.check(config)
        samplers[way] = Sampler(model=chosen, config=config, method=way, device=device, shows_steps=False)
    samples = options.list_samples(chosen.video.seed, chosen.video.fps, small=chosen.is_small)
    name = "ways" if ways else given.get("method", "flowcache")
    if name in ("teacache", "flowcache"):
        name += f"_{given.get('preset', DEFAULT_PRESET)}"
    output = Path(
        options.base_save_path or f"outputs/{model.package}/{options.benchmark}_{name}"
    ).expanduser()
    described = chosen.describe()
    work = new_work(model.title, described, output, samples, samplers, rank, bool(ways), options.keep_going)
    work.check()
    return devices, work


def choose_method(given: Given, model: type[Adapter]) -> tuple[MethodOptions, dict[str, str]]:
    """The options of the method that are read, and why the others are not, by name.

    Raises:
        ValueError: an option is out of range, or unknown to the model.
    """
    values = given.pick(MethodOptions)
    unread = unread_options({"method": "flowcache", **values}, model.traits)
    for name in unread.keys() & values.keys():
        del values[name]
        if name not in given.typed and name in given.scripted:
            logger.info("--%s of the script has no effect: %s", name, unread[name])
    return MethodOptions(**values), unread


def settle_target(given: Given) -> Target | None:
    """The target of a search for settings, over method and preset of a script; None: there is none.

    Raises:
        ValueError: a target is given with an option that it would choose, or a profile without one.
    """
    speedup, psnr = given.get("target_speedup"), given.get("target_psnr")
    if speedup is None and psnr is None:
        if given.get("profile") is not None:
            raise ValueError("profile needs target_speedup or target_psnr.")
        return None
    target = Target(speedup=speedup, psnr=psnr)
    for name, value in (("method", "flowcache"), ("preset", None)):
        if name not in given.typed:
            given.override(name, value)
    if given.get("method") != "flowcache":
        raise ValueError(f"{target.flag} needs method flowcache, got {given.get('method')}.")
    for name in ("preset", *SELECTORS):
        if given.get(name) is not None:
            raise ValueError(f"{target.flag} and {name} exclude each other: leave one of them out.")
    return target


def settle_seed(given: Given) -> None:
    """Draw and log a seed for -1, as the original programs do.

    Raises:
        ValueError: a run that is to be resumed would draw another seed.
    """
    if given.get("seed") == -1:
        if given.get("resume"):
            raise ValueError("seed: expected a number to resume with, got -1, which draws one at each start.")
        given.values["seed"] = secrets.randbelow(2**32)
        logger.info("seed: %d was drawn; give it to make the same video again", given.values["seed"])


def read_inputs(given: Given) -> tuple[Mapping[str, Frames], VideoInfo | None]:
    """Read images by their options, and size and rate of what the video starts with.

    Raises:
        ValueError: a file cannot be read, or two of them exclude each other.
    """
    if given.get("end_image") and not given.get("image"):
        raise ValueError("end_image needs image as well: the video has to start somewhere.")
    if given.get("video_path") and given.get("image"):
        raise ValueError("video_path and image exclude each other: the video starts with one of them.")
    images, info = {}, None
    for name in ("end_image", "image", "video_path"):
        path = given.get(name)
        if path is None:
            continue
        try:
            if name == "video_path":
                info = probe_video(path)
            else:
                images[name] = read_image(path)
                info = VideoInfo(1, None, *images[name].shape[:2])
        except ValueError as error:
            raise ValueError(f"{given.spelled[name]}: {error}") from error
    return images, info


def output_path(given: Given, model: type[Adapter], name: str) -> Path:
    """Where the video goes; its folder is made.

    Raises:
        ValueError: the path is no mp4, or cannot be written.
    """
    path = given.get("output_path")
    if path is None:
        folder = given.get("outdir", VideoOptions.outdir) / given.get("expname", model.package)
        return output_file("outdir", folder / name)
    if path.name and path.suffix.lower() not in ("", ".mp4"):
        raise ValueError(f"output_path must end in .mp4, which is what is written, got {path}.")
    return output_file(
        "output_path", path if path.suffix or os.path.isdir(path) else path.with_suffix(".mp4")
    )


def find_model(name: str) -> type[Adapter]:
    """The adapter of a model of ``MODELS``."""
    module, _, kind = MODELS[name].partition(":")
    return getattr(import_module(module), kind)


def run_model(program: str, name: str, words: Sequence[str]) -> int:
    """Run ``generate`` or ``sample`` for a model; returns the exit code."""
    model = find_model(name)
    if program == "generate":
        return run_program(lambda: prepare_video(model, words), Job.run)
    command = ["-m", "flowcache", program, "--model", name, *words]
    return run_checked(lambda: prepare_samples(model, words), lambda found: run_on(*found, command))


def main(words: Sequence[str] | None = None) -> int:
    """Run a program of the command line; returns the exit code."""
    program, *rest = [*(sys.argv[1:] if words is None else words), ""][:-1] or ["--help"]
    if program in ("benchmark", "metrics"):
        return import_module(f".{program}.__main__", __package__).main(rest)
    if program in ("generate", "sample"):
        flag, equals, name = (rest or [""])[0].partition("=")
        if flag == "--model" and (equals or len(rest) > 1):
            name, rest = (name, rest[1:]) if equals else (rest[1], rest[2:])
            if name in MODELS:
                return run_model(program, name, rest)
    parser = OptionParser(__doc__, prog="flowcache")
    parser.add_argument("program", choices=["generate", "sample", "benchmark", "metrics"])
    parser.add_argument("--model", choices=MODELS, required=True, help="model; the first option")
    parser.parse_args([program, *rest][:3])
    return 2
