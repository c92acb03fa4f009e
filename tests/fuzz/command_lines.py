"""Command lines: some of a program's options with usual values, few with hostile ones."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from .documents import Damaged
from .oracle import PLACES, Fault, canonical, is_same, judge_ending, judge_settings, judge_values
from .programs import PROGRAMS, Outcome, Program, run_program
from .sandbox import Sandbox
from .values import number, text

#: Change nothing by intention, or nothing that a job shows.
SILENT = frozenset({"log", "print_peak_memory", "model_name", "resume", "device", "gpus", "profile", "model"})
SILENT |= {"distributed_backend", "distributed_timeout_minutes", "cp_strategy", "causal_attention"}
#: Variables that the programs read, and usual values.
VARIABLES = {
    "PAD_HQ": ("1", "0", "yes"),
    "PAD_DURATION": ("1", "0"),
    "SPECIAL_TOKEN_PATH": ("missing.npz",),
    "prev_chunks_scale": ("0.7", "1"),
    "DEVICES": ("cpu", "0,1"),
    "RANK": ("0", "1"),
    "WORLD_SIZE": ("1", "2"),
    "LOCAL_RANK": ("0",),
    "FLOWCACHE_CACHE": ("kept",),
    "PYTHONIOENCODING": ("ascii",),
}
#: May have no effect beside all of these: documented, or the first prompt of both lists is the same.
OVERRIDDEN = {"resolution": {"height", "width"}, "dimension": {"end"}}


@dataclass(frozen=True)
class File:
    """A file of the working folder: a good one, damaged.

    Attributes:
        path: in the working folder.
        damaged: what it holds.
        folder: of the good files, copied to the folder ``folder_at`` first; None: none.
        settings: whether its numbers are settings of a video.
    """

    path: str
    damaged: Damaged
    folder: str | None = None
    folder_at: str = ""
    settings: bool = False

    def write(self, sandbox: Sandbox) -> None:
        if self.folder is not None:
            shutil.copytree(sandbox.good / self.folder, self.folder_at)
        path = Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.damaged.content)


@dataclass(frozen=True)
class CommandLine:
    """A program with options and files.

    Attributes:
        program: which.
        typed: words of each option, by name.
        depth: see ``run_program``.
        files: written before.
        environment: variables.
        kind: of the input.
        also: looks at the outcome in the working folder, and returns more faults.
    """

    program: Program
    typed: Mapping[str, Sequence[str]]
    depth: str = "check"
    files: Sequence[File] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    kind: str = "command line"
    also: Callable[[Outcome], list[Fault]] | None = None

    def words(self, good: str = "@") -> list[str]:
        """The words behind the program's name."""
        options, found = self.program.options, []
        positional = [name for name in self.typed if name in options and options[name].positional]
        for name in (*positional, *(name for name in self.typed if name not in positional)):
            flag = options[name].flag if name in options else [f"--{name}"]
            found += [*flag, *(word.replace("@/", f"{good}/", 1) for word in self.typed[name])]
        return found

    def describe(self) -> str:
        first = " ".join(filter(None, [self.program.name, self.program.command]))
        variables = "".join(f"{name}={shlex.quote(value)} " for name, value in self.environment.items())
        files = "".join(f"  [{file.path}: {file.damaged.what}]" for file in self.files)
        line = shlex.join(
            word if len(word) < 100 else f"{word[:40]}...({len(word)})" for word in self.words()
        )
        return f"{variables}{first} {line}{files} ({self.depth})"

    def run(self, sandbox: Sandbox) -> list[Fault]:
        started = time.perf_counter()
        with sandbox.case():
            outcome, before = self.outcome_in(sandbox)
            faults = judge_ending(outcome, self._named(), self.depth)
            if self.also is not None:
                faults += self.also(outcome)
            faults += self._judge_files(outcome, before, sandbox)
        if outcome.accepted or outcome.code == 0:
            kinds = {name: option.kind for name, option in self.program.options.items()}
            faults += judge_values(self.typed, kinds)
            faults += judge_settings(*(file.damaged for file in self.files if file.settings))
            quick = time.perf_counter() - started < 0.5
            if quick and self.depth == "check" and not self.files and self.program.package:
                faults += self._judge_ignored(outcome, sandbox)
        return faults

    def outcome_in(self, sandbox: Sandbox) -> tuple[Outcome, set[str]]:
        for file in self.files:
            file.write(sandbox)
        before = set(_files())
        return run_program(self.program, self.words(str(sandbox.good)), self.depth, self.environment), before

    def _named(self) -> list[str]:
        words = [word.removeprefix("@/") for words in self.typed.values() for word in words]
        files = [Path(file.path).name for file in self.files]
        words += [os.path.expanduser(word) for word in words if word.startswith("~")]
        return [*self.program.options, *self.typed, *words, *files, *self.environment, "arguments"]

    def _judge_files(self, outcome: Outcome, before: set[str], sandbox: Sandbox) -> list[Fault]:
        found = []
        lost, added = sandbox.changes()
        words = [word for name in PLACES & self.typed.keys() for word in self.typed[name]]
        words += self.typed.get("run_dir", ())  # keeps what was measured there
        targets = tuple(word[2:] for word in words if word.startswith("@/"))
        lost = [name for name in lost if not name.startswith(targets)]
        added = [name for name in added if not name.startswith(targets)]
        if lost or added:
            found.append(Fault("files", "files of the user changed", ", ".join([*lost, *added][:5])))
        new = sorted(set(_files()) - before)
        if outcome.code == 2 and new:
            found.append(Fault("files", "left behind by a refusal", ", ".join(new[:5])))
        parts = (".part.",) if outcome.code == 0 else ()  # a failure leaves the frames that it made
        hidden = [n for n in new if Path(n).name.startswith(".") or any(part in n for part in parts)]
        if outcome.code in (0, 1) and hidden:
            found.append(Fault("files", f"left behind, exit code {outcome.code}", ", ".join(hidden[:5])))
        return found

    def _judge_ignored(self, outcome: Outcome, sandbox: Sandbox) -> list[Fault]:
        """Options that change nothing in the checked job, whatever their value; no warning speaks of them."""
        found = []
        for name in self.typed:
            option = self.program.options.get(name)
            if name in SILENT or option is None or self._is_overridden(name):
                continue
            if any(name in line for line in outcome.logged):
                continue
            mine, typed = canonical(outcome.job, name in PLACES), self.typed[name]
            others = [{}, *({name: [word]} for word in option.known if not is_same([word], typed))]
            jobs = [self._job_with(name, other, sandbox) for other in others]
            same = [job == mine for job in jobs if job is not None]
            if all(same) and len(same) > (option.kind != "switch"):
                found.append(Fault("ignored", f"{self.program.package}: {name}", f"--{name} changes nothing"))
        return found

    def _is_overridden(self, name: str) -> bool:
        return name in OVERRIDDEN and OVERRIDDEN[name] <= self.typed.keys()

    def _job_with(self, name: str, words: Mapping[str, Sequence[str]], sandbox: Sandbox) -> object:
        """What the checks make of other words for an option; None: they refuse it."""
        typed = {key: value for key, value in self.typed.items() if key != name} | words
        with sandbox.case():
            outcome, _ = replace(self, typed=typed).outcome_in(sandbox)
        sandbox.changes()
        return canonical(outcome.job, name in PLACES) if outcome.accepted else None


def _files() -> list[str]:
    return [
        os.path.relpath(os.path.join(folder, name)) for folder, _, names in os.walk(".") for name in names
    ]


def usual_line(
    name: str,
    kind: str,
    files: Sequence[File] = (),
    depth: str = "check",
    **typed: str | Sequence[str] | None,
) -> CommandLine:
    """A program's usual command line with other words for some options; None: without the option."""
    program = PROGRAMS[name]
    words = {name: list(of) for name, of in program.usual.items() if typed.get(name, "") is not None}
    words |= {name: [of] if isinstance(of, str) else of for name, of in typed.items() if of is not None}
    return CommandLine(program, words, depth, files, kind=kind)


def draw_command_line(rng: Random, sandbox: Sandbox) -> CommandLine:
    """A program with some of its options; one in fifty that look well runs to the end."""
    names = ["magi1", "skyreels"] * 4 + ["magi1_samples", "skyreels_samples"] * 2
    program = PROGRAMS[rng.choice([*names, *PROGRAMS])]
    options = program.options
    typed = {name: list(words) for name, words in program.usual.items()}
    hostile = rng.random() < 0.6
    for name in rng.sample(list(options), min(len(options), rng.choice((1, 1, 1, 2, 2, 3, 5)))):
        typed[name] = options[name].usual(rng)
    if hostile:
        for name in rng.sample(list(options), rng.choice((1, 1, 1, 2, 3)) if len(options) > 3 else 1):
            typed[name] = options[name].hostile(rng, sandbox.bad_paths)
    if "ways" in typed:
        typed.pop("method", None)
    if rng.random() < 0.02:
        typed[rng.choice(("unknown_flag", "numframes", "promt"))] = ["1"]
    depth = "run" if rng.random() < (0.02 if hostile else 0.1) else "check"
    return CommandLine(program, typed, depth, environment=draw_environment(rng))


def draw_environment(rng: Random) -> dict[str, str]:
    """Variables that the programs read, for one command line in ten."""
    if rng.random() < 0.9:
        return {}
    name = rng.choice(list(VARIABLES))
    return {name: rng.choice((*VARIABLES[name], number(rng), text(rng)))}
