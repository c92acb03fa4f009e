"""The script that makes the paper's tables."""

import runpy
import subprocess
import sys
from types import SimpleNamespace

import pytest
from programs import Program
from reference import ROOT


@pytest.fixture
def front(monkeypatch, tmp_path):
    """The script, with its commands noted down; those in ``codes``, counted from 1, end with that code."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(ROOT / "scripts" / "reproduce_tables.py"))["main"]

    def front(*words):
        monkeypatch.setattr(sys, "argv", ["reproduce_tables.py", *map(str, words)])
        try:
            return main()
        except SystemExit as stop:
            return stop.code

    def run(command):
        front.commands.append(command[1:])
        code = front.codes.get(len(front.commands), 0)
        if code == 130:
            raise KeyboardInterrupt
        return SimpleNamespace(returncode=code)

    front.commands, front.codes = [], {}
    monkeypatch.setattr(subprocess, "run", run)
    return front


@pytest.mark.parametrize(("index", "folder"), [(0, "FlowCache4SkyReels-V2"), (1, "FlowCache4MAGI-1")])
def test_the_sampling_programs_take_its_commands(front, monkeypatch, index, folder):
    assert front("--model", "small", "--prompts", 1, "--magi_flags", "--num_steps 8") == 0
    program, *words = front.commands[index]
    assert program == str(ROOT / folder / "sample_video.py")
    devices, work = Program(ROOT / folder / "sample_video.py", monkeypatch).prepare(*words)
    assert devices and len(work.samples) == 1
    assert {"vanilla", "teacache:paper-slow", "flowcache:paper-fast", "flowcache:quality"} <= {*work.samplers}


def test_tables_and_pictures_follow_and_all_commands_of_a_folder_are_kept(front, tmp_path, capsys):
    front.codes = {2: 1}
    assert front("--outdir", "out") == 1, "only one model's videos were made"
    assert len(front.commands) == 4 and "magi1: not finished" in capsys.readouterr().err
    front.commands, front.codes = [], {}
    for _ in range(2):
        assert front("--outdir", "out", "--only", "magi1") == 0
    assert [words[2] for words in front.commands[1:3]] == ["tables", "plot"]
    base = "bash scripts/reproduce_tables.sh --outdir out"
    assert (tmp_path / "out" / "command.txt").read_text().splitlines() == [base, f"{base} --only magi1"]


def test_one_of_many_machines_only_samples(front, monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert front() == 0 and len(front.commands) == 2
    command = (tmp_path / "outputs" / "tables_auto" / "command.txt").read_text()
    assert command == "torchrun --nnodes=2 --nproc_per_node=2 scripts/reproduce_tables.py\n"


@pytest.mark.parametrize(
    ("arguments", "first", "expected", "named"),
    [
        (["--outdir", "out"], 2, 1, "skyreels_v2"),
        (["--outdir", "out"], 130, 130, "interrupted"),
        (["--prompts", 0], None, 2, "prompts"),
        (["--magi_flags", "'--a"], None, 2, "magi_flags"),
        (["--model", "large"], None, 2, "model"),
    ],
)
def test_bad_input_or_a_program_that_refuses_ends_it(front, arguments, first, expected, named, capsys):
    front.codes = {1: first}
    assert front(*arguments) == expected
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and named in line and len(front.commands) == (first is not None)
