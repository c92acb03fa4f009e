"""The paper's PFLOPs beside ours."""

import tomllib
from importlib.metadata import EntryPoint

import pytest
from reference import ROOT

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.paper_flops import GROUP, PETA, PaperFlops, PaperRow

ROWS = {name: PaperRow(pflops, 1, 1, 1) for name, pflops in (("vanilla", 100), ("slow", 80), ("fast", 50))}
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]


def test_a_share_is_what_the_row_does_not_pay_for():
    counted = {"everything": 100 * PETA, "live chunks": 80.2 * PETA}
    lines = PaperFlops("a model", "small", ROWS, counted).markdown().splitlines()
    assert lines[0] == "a model: small"
    assert lines[-1] == "| fast | 100.00 | 50 | -50.0 % | 0.50 | 0.38 |"
    assert lines[-3] == "| vanilla | 100.00 | 100 | +0.0 % | 0.00 |  |", "it costs more than live chunks"
    rounded = PaperFlops("a", "b", ROWS, {"everything": 99.7 * PETA})
    assert rounded.reused_share("vanilla", "everything") == 0, "the paper's figures are rounded"


@pytest.mark.parametrize(
    ("points", "code", "words"),
    [
        (DECLARED, 0, ["| vanilla | 305.98 | 306 | +0.0 % |", "| FlowCache-fast | 113.60 | 28 |"]),
        ({}, 2, ["error: ", "install this project again"]),
        ({"gone": "no_such_package:table"}, 2, ["error: ", "install this project again"]),
    ],
)
def test_command_prints_the_tables_of_installed_models(points, code, words, monkeypatch, capsys):
    found = [EntryPoint(name, value, GROUP) for name, value in points.items()]
    monkeypatch.setattr("flowcache.benchmark.paper_flops.entry_points", lambda group: found)
    assert program.main(["flops"]) == code
    text = "".join(capsys.readouterr())
    assert all(word in text for word in words)
