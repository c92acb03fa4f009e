"""The script that makes the paper's tables."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from programs import Program
from reference import ROOT


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The script, with the commands that it would run noted down; the first one that has a code ends so."""
    monkeypatch.chdir(tmp_path)
    program = Program(ROOT / "scripts" / "reproduce_tables.py", monkeypatch)
    program.commands, program.codes = [], {}

    def run(command):
        words = command[1:]
        program.commands.append(words)
        return SimpleNamespace(returncode=program.codes.get(len(program.commands), 0))

    monkeypatch.setattr(program.module.subprocess, "run", run)
    return program


@pytest.mark.parametrize(("index", "folder"), [(0, "FlowCache4SkyReels-V2"), (1, "FlowCache4MAGI-1")])
def test_the_sampling_programs_take_what_it_gives_them(front, monkeypatch, tmp_path, index, folder):
    assert front("--model", "small", "--prompts", 1, "--magi_flags", "--num_steps 8") == 0
    program, *words = front.commands[index]
    sampling = Program(ROOT / folder / "sample_video.py", monkeypatch)
    assert program == str(ROOT / folder / "sample_video.py")
    args, rest = sampling.module.build_parser().parse_known_args(words)
    prepared = (args,) if index == 0 else (args, rest)
    devices, work = sampling.module.prepare(*prepared)
    assert devices and len(work.samplers) == len(args.methods)
    methods = {"vanilla", "teacache:paper-slow", "flowcache:paper-fast", "flowcache:quality"}
    assert methods <= work.samplers.keys()
    assert len(work.samples) == 1


def test_tables_and_pictures_follow_and_the_command_is_kept(front, tmp_path, capsys):
    assert front("--only", "magi1", "--outdir", "out") == 0
    assert [words[2] for words in front.commands[1:]] == ["tables", "plot"]
    assert (tmp_path / "out" / "command.txt").read_text() == (
        "bash scripts/reproduce_tables.sh --only magi1 --outdir out\n"
    )
    assert "tables out" in capsys.readouterr().out


def test_all_commands_of_a_folder_are_kept(front, tmp_path):
    front.codes = {2: 1}
    assert front("--outdir", "out") == 1, "only one model's videos were made"
    for _ in range(2):
        assert front("--outdir", "out", "--only", "magi1") == 0
    base = "bash scripts/reproduce_tables.sh --outdir out"
    assert (tmp_path / "out" / "command.txt").read_text().splitlines() == [base, f"{base} --only magi1"]


def test_one_of_many_machines_only_samples(front, monkeypatch, tmp_path, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert front() == 0
    assert len(front.commands) == 2
    assert "when all machines are done: python -m flowcache.benchmark tables" in capsys.readouterr().out
    command = (tmp_path / "outputs" / "tables_auto" / "command.txt").read_text()
    assert command == "torchrun --nnodes=2 --nproc_per_node=2 scripts/reproduce_tables.py\n"


def test_the_command_is_noted_before_any_video_is_made(front, monkeypatch, tmp_path):
    def killed(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(front.module.subprocess, "run", killed)
    assert front("--outdir", "out") == 130
    told = (tmp_path / "out" / "command.txt").read_text()
    assert told == "bash scripts/reproduce_tables.sh --outdir out\n"


def test_what_fails_in_one_model_keeps_no_other_from_its_table(front, capsys):
    front.codes = {1: 1}
    assert front() == 1
    assert len(front.commands) == 4, "the other model, tables and pictures"
    assert "skyreels_v2" in capsys.readouterr().err


def test_a_program_that_refuses_ends_it(front, capsys):
    front.codes = {1: 2}
    assert front() == 1
    assert len(front.commands) == 1
    assert "error: skyreels_v2 was not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", 0], "prompts must be at least 1"),
        (["--magi_flags", "'--a"], "magi_flags cannot be split into words"),
        (["--model", "large"], "argument --model"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(front, arguments, message, capsys):
    assert front(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert front.commands == []
