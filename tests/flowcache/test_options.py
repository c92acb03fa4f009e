"""Options of the programs: typed words, those of scripts, YAML files, and the values that they come to."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from programs import Program
from reference import ROOT

from flowcache import cli
from flowcache.options import OptionParser
from flowcache.registry import exact_rate, plain_rate


@dataclass(frozen=True)
class Options:
    """Options.

    Attributes:
        method: name.
        num_frames, sizes: numbers.
    """

    method: str = "fast"
    num_frames: int | None = None
    sizes: tuple[float, ...] = ()
    offload: bool = False
    retention: bool | None = None
    policy_options: Mapping = field(default_factory=dict)


@pytest.fixture
def read(tmp_path):
    parser = OptionParser()
    parser.add_fields("options", Options, {"num_frames": ("frames",)}, choices={"method": ["fast", "slow"]})
    parser.ignore(["debug"])

    def read(*words, content=None):
        (tmp_path / "a.yaml").write_text(content or "")
        return parser.read(words, "file", None if content is None else tmp_path / "a.yaml")

    return read


def test_typed_words_override_those_of_scripts_which_override_the_file(read):
    words = ["--method=slow", "--defaults", "--method", "fast", "--frames", "377"]
    words += ["--defaults", "--num_frames", "177", "--offload"]
    given = read(*words, content="num_frames: 3\nsizes: [1, 2e1]\nretention: false")
    expected = {"method": "slow", "num_frames": 377, "offload": True, "sizes": (1.0, 20.0), "retention": False}
    assert given.values == expected
    assert (given.typed, given.scripted) == ({"method"}, {"method", "num_frames", "offload"})
    given.override("num_frames", 5)
    assert given.get("num_frames") == 5


def test_words_become_values(read, caplog):
    given = read("--sizes", "[1, 24000/1001]", "--no-retention", "--offload", "false", "--debug", "--frames=1e1")
    expected = {"sizes": (1.0, 24000 / 1001), "retention": False, "offload": False, "num_frames": 10}
    assert given.pick(Options) == expected
    assert "debug is ignored" in caplog.text
    assert read("--num_frames", "0123").values == {"num_frames": 123}  # YAML 1.1 reads octal
    given = read("--policy_option", "scale=0.5", "--policy_options", "interval=none")
    assert given.values == {"policy_options": {"scale": "0.5", "interval": "none"}}


WRONG_WORDS = {
    "--num_frame 3": "did you mean --num_frames?",
    "--num_frames --defaults --method fast": "--num_frames",
    f"--sizes {'[' * 3000}": "YAML",
    "--sizes '!!python/object/apply:os.getcwd []'": "YAML",
    "--num_frames '!!int \"\"'": "YAML",
    "--num_frames 1:30": "whole number",  # 90 in YAML 1.1
    "--offload 1": "true or false",
    "--policy_option scale": "NAME=VALUE",
    "--method magic": "--method",
}
WRONG_FILES = {
    "[1, 2]": "a.yaml must hold named values",
    "num_frame: 3": "did you mean num_frames",
    "frames: many": "frames: expected a whole number",
    "method: magic": "method: expected one of",
    "offload: {a: 1}": "offload",
    "[" * 3000: "a.yaml cannot be read as YAML",
}


@pytest.mark.parametrize("words", WRONG_WORDS)
def test_wrong_words_are_refused_in_one_line(read, words, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*shlex.split(words))
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and WRONG_WORDS[words] in line


@pytest.mark.parametrize("content", WRONG_FILES)
def test_wrong_files_are_refused(read, content):
    with pytest.raises(ValueError, match=WRONG_FILES[content]):
        read(content=content)


def test_errors_name_an_option_as_it_was_given(read):
    given = read("--frames", "3")
    with pytest.raises(ValueError, match=r"^frames and method"), given.naming():
        raise ValueError("num_frames and method exclude each other.")
    with pytest.raises(ValueError, match=r"num_frames: no effect, as a, b;"):
        given.refuse_unread({"num_frames": "a", "method": "c"}, {"num_frames": "b"})


def test_a_rate_stands_for_a_fraction():
    for rate in (23.976, "23.98", "24000/1001", Fraction(24000, 1001), 24000 / 1001):
        assert exact_rate(rate) == exact_rate(plain_rate(rate)) == Fraction(24000, 1001)
    assert [exact_rate(r) for r in (24, Fraction(25, 2), "30000/1001")] == [24, 12.5, Fraction(30000, 1001)]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 10**9, "1/0", "x", None, [24], "9" * 5000, "1e999999999"])
def test_no_other_rate_is_taken(rate):
    with pytest.raises(ValueError, match="fps"):
        exact_rate(rate)


@pytest.mark.parametrize("model", cli.MODELS)
@pytest.mark.parametrize("program", ["generate", "sample"])
def test_help_groups_all_options_and_shows_every_default(model, program):
    parser = cli.build_parser(cli.find_model(model), program)
    assert {"method", "KV cache", "model", "video"} < {group.title for group in parser._action_groups}
    exempt = ("refused", "ignored", "opposite", "==SUPPRESS==", "show this")
    lacking = [a.option_strings for a in parser._actions if "(default" not in a.help and not a.help.startswith(exempt)]
    assert not lacking and "(default: " in parser.format_help()


def test_the_command_line_chooses_program_and_model(monkeypatch, capsys):
    for words, code in {"--help": 0, "": 2, "generate --model sora": 2, "metrics --help": 0}.items():
        with pytest.raises(SystemExit) as stop:
            cli.main(words.split())
        assert stop.value.code == code
    assert Program(ROOT / "FlowCache4MAGI-1" / "generate_video.py", monkeypatch)("--help") == 0
    assert "flowcache generate --model magi1" in capsys.readouterr().out
