"""What the programs share: typed words over those of scripts."""

from __future__ import annotations

import pytest

from flowcache.command_line import Parser, Refuse


@pytest.fixture
def parser():
    parser = Parser()
    for name in ("--method", "--preset", "--num_frames"):
        parser.add_argument(name)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--use_usp", action=Refuse, const="one process makes one video")
    return parser


def test_typed_words_override_those_of_a_script_and_inner_scripts_those_of_outer_ones(parser):
    words = ["--preset=fast", "--key", "5", "--defaults", "--preset", "slow", "--num_frames", "377"]
    words += ["--defaults", "--num_frames", "177", "--method", "vanilla", "--offload"]
    args, rest = parser.parse_known_args(words)
    assert (args.preset, args.num_frames, args.method, args.offload) == ("fast", "377", "vanilla", True)
    assert rest == ["--key", "5"]
    assert args.typed == {"preset", "key"}


def test_without_a_script_all_words_are_typed(parser):
    args = parser.parse_args(["--method", "causal", "--offload"])
    assert (args.method, args.preset) == ("causal", None)
    assert args.typed == {"method", "offload"}


def test_a_flag_without_its_value_does_not_take_one_of_the_script(parser):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--preset", "--defaults", "--method", "vanilla"])
    assert stop.value.code == 2


def test_a_refused_flag_says_why(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--use_usp"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--use_usp: one process makes one video" in line
