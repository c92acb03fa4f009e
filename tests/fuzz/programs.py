"""The programs, run in this process up to a chosen depth, and what came of it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from reference import ROOT

from .options import Option, options_of_fields, options_of_parser

MAGI, SKYREELS = ROOT / "FlowCache4MAGI-1", ROOT / "FlowCache4SkyReels-V2"

#: Pixels times frames times steps that a run to the end may make.
MOST_WORK = 64 * 64 * 64 * 16


class Stopped(BaseException):
    """The run has come as deep as it was to come."""


@dataclass(frozen=True)
class Program:
    """A program: where it lies, and the model package that its weights are read by.

    Attributes:
        name: short.
        place: path of the file, or name of the module.
        package: of the model.
        usual: flags that make a quick run of a tiny model; ``@`` stands for the good files.
        command: of the program, whose own flags it takes.
    """

    name: str
    place: Path | str
    package: str | None = None
    usual: Mapping[str, Sequence[str]] = field(default_factory=dict)
    command: str | None = None

    @cached_property
    def module(self) -> ModuleType:
        if isinstance(self.place, str):
            return importlib.import_module(self.place)
        name = f"fuzzed_{self.name}"
        spec = importlib.util.spec_from_file_location(name, self.place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    @cached_property
    def options(self) -> dict[str, Option]:
        """All that its command line takes, by name."""
        parser = self.module.build_parser()
        if self.command:
            (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            parser = commands.choices[self.command]
        found = options_of_parser(parser)
        if self.package == "magi1":
            from magi1.config import EngineSection, FlowCacheOptions, ModelSection, RuntimeSection

            found = options_of_fields(ModelSection, RuntimeSection, EngineSection, FlowCacheOptions) | found
        return found


_MAGI_TINY = {"config_file": ["@/magi1/config.json"], "model": ["official"]}
_SKYREELS_TINY = {"model_id": ["@/skyreels"], "height": ["32"], "width": ["32"], "inference_steps": ["4"]}
_SKYREELS_TINY |= {"num_frames": ["9"], "ar_step": ["1"], "causal_block_size": ["2"]}
_SAMPLES = {"gpus": ["cpu"], "vbench_prompt_dir": ["@/prompts"], "samples": ["1"], "base_save_path": ["out"]}
_BENCHMARK = "flowcache.benchmark.__main__"

PROGRAMS = {
    program.name: program
    for program in (
        Program("magi1", MAGI / "generate_video.py", "magi1", {**_MAGI_TINY, "prompt": ["a"]}),
        Program("magi1_samples", MAGI / "sample_video.py", "magi1", {**_MAGI_TINY, **_SAMPLES}),
        Program(
            "skyreels", SKYREELS / "generate_video_df.py", "skyreels_v2", {**_SKYREELS_TINY, "prompt": ["a"]}
        ),
        Program(
            "skyreels_samples", SKYREELS / "sample_video.py", "skyreels_v2", {**_SKYREELS_TINY, **_SAMPLES}
        ),
        Program(
            "metrics",
            "flowcache.metrics.__main__",
            usual={
                **{"original_video": ["@/original"], "generated_video": ["@/generated"]},
                **{"output": ["scores"], "metrics": ["psnr"], "device": ["cpu"]},
            },
        ),
        Program(
            "physics_iq",
            _BENCHMARK,
            usual={
                "generated_videos": ["@/continued"],
                "reference_videos": ["@/physics/split-videos/testing/8FPS"],
                "output": ["scores"],
            },
            command="physics_iq",
        ),
        Program(
            "vbench",
            _BENCHMARK,
            usual={"generated_videos": ["@/vbench_videos"], "environment": ["new_environment"]},
            command="vbench",
        ),
        Program(
            "tables",
            _BENCHMARK,
            usual={"run_dir": ["@/run"], "device": ["cpu"], "output": ["tables"]},
            command="tables",
        ),
        Program("plot", _BENCHMARK, usual={"run_dir": ["@/run"], "output": ["pictures"]}, command="plot"),
    )
}


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        code: its exit code; None where it was stopped or broke.
        job: what its checks returned; None where they refused.
        accepted: whether the checks returned.
        errors: what it printed to standard error.
        logged: warnings and worse.
        broke: a traceback, and the innermost place of ours in it.
    """

    code: int | None = None
    job: Any = None
    accepted: bool = False
    errors: str = ""
    logged: list[str] = field(default_factory=list)
    broke: str = ""
    place: str = ""


def run_program(
    program: Program, words: Sequence[str], depth: str, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run a program with some words, as a shell would.

    Args:
        program: which.
        words: its arguments.
        depth: ``check`` stops where weights would be read, ``load`` behind that, ``run`` at the end.
        environment: variables that are set meanwhile.
    """
    outcome = Outcome()
    encoding = "ascii" if (environment or {}).get("PYTHONIOENCODING") == "ascii" else "utf-8"
    output = io.TextIOWrapper(io.BytesIO(), encoding, "strict", write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    first = [program.command] if program.command else []
    argv = [f"{program.name}.py", *first, *words]
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(output))
        stack.enter_context(redirect_stderr(errors))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(mock.patch.dict(os.environ, environment or {}))
        stack.enter_context(_logged(outcome.logged))
        stack.enter_context(_limited(program, outcome, depth))
        try:
            outcome.code = program.module.main()
        except SystemExit as stop:
            outcome.code = stop.code
        except Stopped:
            pass
        except Exception as error:
            outcome.broke = "".join(traceback.format_exception(error))
            outcome.place = f"{type(error).__name__} at {innermost(error)}"
    outcome.errors = errors.buffer.getvalue().decode()
    return outcome


@contextmanager
def _logged(lines: list[str]) -> Iterator[None]:
    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, root = Lines(logging.WARNING), logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


@contextmanager
def _limited(program: Program, outcome: Outcome, depth: str) -> Iterator[None]:
    """Within, the program's checks leave their job in the outcome, and it stops at its depth."""

    def recorded(plain: Callable) -> Callable:
        def prepare(*arguments: Any, **named: Any) -> Any:
            outcome.job = plain(*arguments, **named)
            outcome.accepted = True
            if program.package is None and depth != "run":
                raise Stopped
            if depth == "run" and work_of(outcome.job) > MOST_WORK:
                raise Stopped
            return outcome.job

        return prepare

    def load(plain: Callable) -> Callable:
        def load_pipeline(*arguments: Any, **named: Any) -> Any:
            pipeline = None if depth == "check" else plain(*arguments, **named)
            if depth != "run":
                raise Stopped
            return pipeline

        return load_pipeline

    def stop(*_: Any, **__: Any) -> None:
        raise Stopped

    module = program.module
    with ExitStack() as stack:
        replace = lambda place, name, new: stack.enter_context(mock.patch.object(place, name, new))  # noqa: E731
        for name in [name for name in vars(module) if name == "prepare" or name.startswith("prepare_")]:
            replace(module, name, stop if name == "prepare_environment" else recorded(getattr(module, name)))
        if program.package:
            sampler = importlib.import_module(f"{program.package}.sampler")
            replace(sampler, "load_pipeline", load(sampler.load_pipeline))
        elif program.command == "tables":
            replace(module, "score_vbench", stop)
        yield


def work_of(job: Any) -> float:
    """Pixels times frames times steps that a job makes, all of its videos together; 0 of other jobs."""
    if isinstance(job, tuple) and len(job) == 2:
        job = job[1]
    jobs = list(getattr(job, "jobs", {"": job}).values())
    total = 0.0
    for one in jobs:
        sampler = getattr(one, "sampler", None)
        count = len(getattr(one, "samples", [0]))
        if hasattr(sampler, "video"):
            video = sampler.video
            total += count * video.height * video.width * video.num_frames * video.inference_steps
        elif hasattr(sampler, "runtime"):
            run = sampler.runtime
            total += count * run.video_size_h * run.video_size_w * run.num_frames * run.num_steps
    return total


def innermost(error: BaseException) -> str:
    """The innermost place of an exception's traceback that lies in the project, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT)) and "/tests/" not in f.filename]
    ours = [f for f in ours if "site-packages" not in f.filename]
    place = ours[-1] if ours else frames[-1]
    return f"{Path(place.filename).name}:{place.name}"
