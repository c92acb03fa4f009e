"""FlowCache: videos, benchmarks and measurements from the command line.

    flowcache generate --model skyreels_v2 --prompt "a red circle moves right over a dark background"
    flowcache sample --model magi1 --benchmark vbench --methods vanilla flowcache:fast
    flowcache metrics ...    flowcache benchmark ...    flowcache compare A.mp4 B.mp4    flowcache env
    flowcache demo    flowcache serve --model skyreels_v2

``python -m flowcache`` is the same. ``flowcache generate --model MODEL --help`` lists the options of a model.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .adapter import Adapter, Start
from .benchmark.physics_iq import SECONDS
from .benchmark.samples import BENCHMARKS, BenchmarkOptions, split_method
from .benchmark.sampling import Sampling, run_on
from .command_line import Parser, check_device, output_file
from .config import FlowCacheConfig
from .environment import describe_installation, repository_commit
from .fingerprint import video_name
from .memory import Estimate, estimate, log_needs
from .methods import DEFAULT_PRESET, SELECTORS, CompressionOptions, MethodOptions
from .options import DEFAULTS, Given, OptionParser
from .parallel.launch import ALONE, Rank, choose_own_device, list_devices, select_device
from .parallel.world import World
from .plots import reuse_map
from .prompt_schedule import PromptSchedule
from .registry import check_number
from .resume import ResumeFile, ResumeShare
from .reuse import NoReuse
from .running import run_checked, summary
from .sampler import Sampler
from .state import VideoPart
from .trace import Trace, find_trace
from .tuning import Target, Tuning
from .typed import field_types
from .video import enlarge_video
from .video_options import VideoOptions, draw_seed, output_path, read_inputs, read_prompt, read_target

logger = logging.getLogger(__name__)

#: Adapters by the name of their package; another model is another line.
MODELS = {
    "skyreels_v2": "skyreels_v2.adapter:SkyReelsV2",
    "magi1": "magi1.adapter:Magi1",
    "self_forcing": "self_forcing.adapter:SelfForcing",
}

#: Modules of the programs that read their options themselves.
PROGRAMS = {
    "benchmark": ".benchmark.__main__",
    "metrics": ".metrics.__main__",
    "compare": ".metrics.causes",
    "serve": ".serve.__main__",
    "demo": ".demo.__main__",
}


@dataclass(frozen=True)
class Job:
    """A video to make, checked, before any weight is read."""

    sampler: Sampler
    prompt: str | PromptSchedule
    start: Start
    output: Path
    preset: str | None
    resume: ResumeFile | ResumeShare | None
    tuning: Tuning | None
    started: float
    given: Given
    identity: Mapping[str, Any]
    is_drawn: bool  # whether the seed is

    def estimate(self) -> Estimate:
        return estimate(self.sampler.model, self.sampler.config, self.start, self.sampler.device)

    def describe(self) -> dict[str, Any]:
        """What must be the same in all processes that make the video."""
        versions, model = {name: version(name) for name in ("torch", "diffusers")}, self.sampler.model
        of_run = {"seed": "drawn"} if self.is_drawn else {}
        of_run |= {name: self.given.get(name, False) for name in ("dry_run", "shard_weights")}
        of_run |= {"resume": self.resume and str(self.output)}
        of_run |= {"cfg_size": model.cfg_size, **vars(model.connection)}
        of_run |= {"device": torch.device(self.sampler.device).type}
        return {**self.identity, **of_run, "versions": {**versions, "code": repository_commit()}}

    @property
    def files(self) -> dict[str, Path]:
        """What ``run`` writes."""
        suffixes = {"video": ".mp4", "trace": ".trace.json", "reuse map": ".reuse.png"}
        enlarged = {"enlarged": ".4x.mp4"} if self.sampler.model.is_small else {}
        return {name: self.output.with_suffix(suffix) for name, suffix in {**suffixes, **enlarged}.items()}

    def run(
        self,
        world: World | None = None,
        trace: Trace | None = None,
        on_step: Callable[[], dict[str, str] | None] | None = None,
        on_part: Callable[[VideoPart], VideoPart] | None = None,
    ) -> str:
        """Make the video, its trace and its reuse map; returns their paths and a summary.

        Of several processes the first writes. ``trace`` is filled in as the video grows; ``on_step`` and ``on_part``
        are those of ``Sampler.write``.
        """
        trace, sampler, world = trace or Trace(), self.sampler, world or World()
        trace.method = sampler.method
        if self.is_drawn:
            sampler.model = sampler.model.with_video(seed=world.exchange(sampler.model.video.seed)[0])
        group = world.join(sampler.device, sampler.model.connection)
        with self.resume or nullcontext() as resume:
            if resume:
                world.agree(lambda: resume.open(group), lambda _: {})
            if not sampler.is_loaded:
                with trace.timer("load"), world.load_in_turn(sampler.model.weight_bytes(sampler.device)):
                    sampler.load(group)
            if self.tuning is not None:
                with trace.timer("tune"):
                    sampler.tune(self.tuning, trace, on_step)
            trace.settings["preset"] = self.preset
            told = {"on_step": on_step, "on_part": on_part}
            sampler.write(self.prompt, self.start, self.output, trace, resume=resume, **told)
        if not group.is_first:
            return ""
        files = self.files
        try:
            trace.save(files["trace"])
            reuse_map(trace, files["reuse map"])
            if sampler.model.is_small:
                enlarge_video(self.output, 4)
        except (OSError, KeyboardInterrupt) as error:
            error.add_note(f"the video itself is whole: {self.output}")
            raise
        found = find_trace(self.output.parent, "vanilla", trace) if sampler.method != "vanilla" else None
        lines = [f"{name}: {path}" for name, path in files.items()]
        return "\n".join([*lines, summary(trace, time.perf_counter() - self.started, found and found[1])])


def build_parser(model: type[Adapter], program: str) -> OptionParser:
    """The options of a program, ``generate`` or ``sample``, for a model."""
    prog = f"flowcache {program} --model {model.package}"
    what = "Generate a video" if program == "generate" else "Sample the videos of a benchmark"
    parser = OptionParser(f"{what} with {model.title}.", prog=prog, usage="%(prog)s [options]")
    aliases = {name: (original,) for name, original in model.traits.names.items()}
    hidden = {"refresh_given", "coefficients", *model.lacks, *(["prompt_switch"] if program == "sample" else [])}
    methods = {"method": model.traits.methods}
    parser.add_fields("method", MethodOptions, aliases, {*hidden, *field_types(CompressionOptions)}, choices=methods)
    parser.add_fields("KV cache", CompressionOptions, aliases, hidden)
    if program == "generate":
        absent = {"image", "end_image", "video_path"} - model.inputs.keys()
        parser.add_fields("run", VideoOptions, model.inputs, absent)
    else:
        parser.add_fields("benchmark", BenchmarkOptions, choices={"benchmark": BENCHMARKS})
        text = "METHOD[:PRESET], to compare in turn, each in its own folder (default: --method alone)"
        parser.add_option("methods", str, text, ("ways",), nargs="+")
    text = "YAML file with any of these options; flags override it (default: the model's, or none)"
    parser.add_option("yaml_config", Path, text, ("additional_config",))
    model.add_flags(parser, program)
    return parser


def read_options(model: type[Adapter], program: str, words: Sequence[str]) -> Given:
    """Options of the command line, over those of the YAML file; raises ValueError with the name of one."""
    given = build_parser(model, program).read(words, "yaml_config", model.option_files.get(program))
    with given.naming():
        model.translate(given)
    return given


def prepare_video(model: type[Adapter], words: Sequence[str], rank: Rank = ALONE) -> Job:
    """Check everything that a video needs; raises ValueError with the name of an option."""
    started = time.perf_counter()
    given = read_options(model, "generate", words)
    with given.naming():
        target = read_target(given)
        options, unread = choose_method(given, model)
        given.refuse_unread(unread)
    is_drawn = draw_seed(given)
    device = given.get("device", "cuda" if torch.cuda.is_available() else "cpu")
    if dry_run := given.get("dry_run", False):
        check_number("rate", given.get("rate"), 1e-6, 1e6)
    else:
        given.refuse_unread({"rate": "it needs dry_run"})
        device = choose_own_device(rank, device)
        check_device(device)
    images, info = read_inputs(given)
    chosen = model.resolve(given, device, info, None)
    with given.naming():
        config = chosen.configure(options)
    prompt = read_prompt(given, chosen)
    try:
        start = chosen.start(images.get("image"), images.get("end_image"), given.get("video_path"))
    except ValueError as error:
        raise ValueError(f"{given.spelled.get('video_path')}: {error}") from error
    chosen.check(config, start)
    chosen.check_lora(device)
    if not dry_run:
        chosen.check_processes(rank.count)
    sampler = Sampler(model=chosen, config=config, method=options.method, device=device)
    identity, tuning = sampler.identity(prompt, start), None
    if target is not None:
        tuning = sampler.tuning(target, given.get("profile"))
        if rank.is_first and not os.path.exists(tuning.path):
            output_file("profile", tuning.path)
        tuning.check()
        identity["tuning"] = {"target": str(target), "profile": tuning.key}
    task = "v2v" if given.get("video_path") else "i2v" if given.get("image") else "t2v"
    selected = {given.spelled[name]: given.get(name) for name in SELECTORS if name not in unread}
    by_preset = options.method == "flowcache" and not options.pick(SELECTORS) and target is None
    by_preset &= not isinstance(config.policy, NoReuse)  # of a model whose steps are never reused
    preset = options.preset or (DEFAULT_PRESET if by_preset else None)
    named = setting_words(options.method, preset, selected, target, config)
    seed, steps = f"seed{chosen.video.seed}", f"steps{chosen.num_steps}"
    name = video_name(str(prompt), [task, *named, *chosen.words, seed, steps], identity)
    output, resume = Path(name) if dry_run else output_path(given, model, name, rank), None
    if given.get("resume") and not dry_run:
        run = identity if rank.count == 1 else {**identity, "processes": rank.count, "cfg_size": chosen.cfg_size}
        resume = ResumeFile(output, run, device) if rank.is_first else ResumeShare(output, run, rank.index)
    return Job(sampler, prompt, start, output, preset, resume, tuning, started, given, identity, is_drawn)


def add_option(words: Sequence[str], option: str) -> list[str]:
    """Add an option, of several words perhaps, to those that were typed."""
    place = words.index(DEFAULTS) if DEFAULTS in words else len(words)
    return [*words[:place], *option.split(), *words[place:]]


def prepare_samples(model: type[Adapter], words: Sequence[str]) -> tuple[list[str], Sampling]:
    """Check everything that a benchmark's videos need; returns the devices of this machine and the work."""
    given = read_options(model, "sample", words)
    options = BenchmarkOptions(**given.pick(BenchmarkOptions))
    rank, devices = Rank.from_environment(os.environ), list_devices(options.gpus)
    device, compared = select_device(rank, devices), given.get("methods", [])
    runs = {}
    with given.naming():
        if compared and "method" in given.typed:
            raise ValueError("methods and method exclude each other: leave one of them out.")
        for name in compared or [given.get("method", "flowcache")]:
            method, preset = split_method(name)
            own = {"method": method, **({"preset": preset} if preset else {})}
            runs[name] = choose_method(replace(given, values={**given.values, **own}), model)
        given.refuse_unread(*(unread for _, unread in runs.values()))
    seconds = SECONDS if options.benchmark == "physicsiq" else None
    chosen, samplers = model.resolve(given, device, None, seconds), {}
    for name, (method, _) in runs.items():
        with given.naming():
            config = chosen.configure(method)
        chosen.check(config, Start())
        samplers[name] = Sampler(model=chosen, config=config, method=name, device=device, shows_steps=False)
    count = rank.count if "WORLD_SIZE" in os.environ else len(devices)  # a process is started for each device
    together = chosen.choose_processes(count)
    if count % together:
        remedy = f"start torchrun with --nproc_per_node {together}, or share each video over fewer"
        raise ValueError(f"processes: expected a multiple of {together}, which share a video, got {count}; {remedy}.")
    chosen.check_processes(together)
    chosen.check_lora(device)
    samples = options.list_samples(chosen.video.seed, chosen.video.fps, chosen.is_small, chosen.from_images)
    name = "ways" if compared else given.get("method", "flowcache")
    if name in ("teacache", "flowcache"):
        name += f"_{given.get('preset', DEFAULT_PRESET)}"
    output = Path(options.base_save_path or f"outputs/{model.package}/{options.benchmark}_{name}").expanduser()
    made = (samplers, samples, rank, options.keep_going, bool(compared), together)
    sampling = Sampling(model.title, chosen.describe(), output, *made)
    sampling.check()
    return devices, sampling


def choose_method(given: Given, model: type[Adapter]) -> tuple[MethodOptions, dict[str, str]]:
    """The options of the method without those that have no effect, and why, by name."""
    values = given.pick(MethodOptions)
    unread = MethodOptions(**values).unread(model.traits)
    for name in unread.keys() & values.keys():
        del values[name]
        if name in given.scripted - given.typed:
            logger.info("--%s of the script has no effect: %s", name, unread[name])
    return MethodOptions(**values), unread


def setting_words(
    method: str,
    preset: str | None,
    selected: Mapping[str, float | str | None],
    target: Target | None,
    config: FlowCacheConfig,
) -> list[str]:
    """Words for the method, for what selects the steps to skip, and for what the KV cache keeps.

    ``selected`` are options that select a reuse policy, by name; a target replaces them and the preset.
    """
    given = {name: value for name, value in selected.items() if value is not None}
    chosen = [value if isinstance(value, str) else f"{name}{value:g}" for name, value in given.items()]
    if target is not None:
        chosen = [str(target)]
    elif preset is not None:
        chosen.insert(0, preset)
    compression, storage = config.compression, config.storage
    if compression is not None:
        bounds = {"window": compression.window, "total": compression.total, "budget": compression.budget}
        chosen.append(next(f"{name}{size}" for name, size in bounds.items() if size is not None))
    if config.clean_range is not None:
        chosen.append(f"kvrange{config.clean_range}")
    if storage is not None:
        chosen += [f"kv{storage.bits}bits"] if storage.bits else []
        chosen += ["kvoffload"] if storage.offload else []
    return [method, *chosen]


def find_model(name: str) -> type[Adapter]:
    module, _, kind = MODELS[name].partition(":")
    return getattr(import_module(module), kind)


def main(words: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if words is None else words)
    if words and words[0] in PROGRAMS:
        return import_module(PROGRAMS[words[0]], __package__).main(words[1:])
    if words and words[0] == "env":
        Parser("Print versions, hardware and devices, for reports.", prog="flowcache env").parse_args(words[1:])
        return run_checked(lambda: None, lambda _: describe_installation())
    parser = OptionParser(__doc__, prog="flowcache", usage="flowcache PROGRAM [--model MODEL] [options]")
    parser.add_argument("program", choices=["generate", "sample", *PROGRAMS, "env"])
    parser.add_argument("--model", choices=MODELS, required=True, help="model; the first option of a program")
    first = 2 if len(words) > 1 and words[1].startswith("--model=") else 3
    chosen, rest = parser.parse_args(words[:first]), words[first:]
    model = find_model(chosen.model)
    if chosen.program == "generate":
        try:
            world = World(Rank.from_environment(os.environ))
        except ValueError as error:
            parser.error(str(error))

        def run(job: Job) -> str:
            if job.given.get("dry_run"):
                report = job.estimate().report(job.given.get("rate"))
                return f"{report}\nfor one process; several share all but the weights" if world.is_many else report
            sampler = job.sampler

            def prepare_with(option: str) -> Job:
                seed = sampler.model.video.seed  # may have been drawn
                return prepare_video(model, add_option(rest, f"{option} --dry_run --seed {seed}"))

            helpful = log_needs(
                job.estimate, lambda option: prepare_with(option).estimate(), model.saving, sampler.device
            )
            if any("--offload" in found for found in world.exchange(helpful)):  # the video stays the same
                logger.info("--offload is on, as the GPU is small")
                sampler.model = prepare_with("--offload").sampler.model
            return job.run(world)

        def prepare() -> Job:
            return world.agree(lambda: prepare_video(model, rest, world.rank), Job.describe)

        return run_checked(prepare, run, world)
    return run_checked(lambda: prepare_samples(model, rest), lambda found: run_on(*found))
