"""The paper's PFLOPs beside ours."""

import tomllib
from importlib.metadata import EntryPoint

import pytest
from reference import ROOT

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.paper_flops import GROUP, PETA, PaperFlops, PaperRow

ROWS = {name: PaperRow(pflops, 1, 1, 1) for name, pflops in (("vanilla", 100), ("slow", 80), ("fast", 50))}
TABLE = PaperFlops("a model", "small", ROWS, {"everything": 100 * PETA, "live chunks": 80.2 * PETA})


def test_a_share_is_what_the_row_does_not_pay_for():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "a model: small"
    assert lines[-1] == "| fast | 100.00 | 50 | -50.0 % | 0.50 | 0.38 |"
    assert lines[-3] == "| vanilla | 100.00 | 100 | +0.0 % | 0.00 |  |", "it costs more than live chunks"
    rounded = PaperFlops("a", "b", ROWS, {"everything": 99.7 * PETA})
    assert rounded.reused_share("vanilla", "everything") == 0, "the paper's figures are rounded"


def test_command_prints_the_tables_of_both_models(monkeypatch, capsys):
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    declared = [EntryPoint(name, value, GROUP) for name, value in points.items()]
    monkeypatch.setattr("flowcache.benchmark.paper_flops.entry_points", lambda group: declared)
    assert program.main(["flops"]) == 0
    out = capsys.readouterr().out
    assert "MAGI-1: 4.5B" in out and "SkyReels-V2: 1.3B" in out
    assert "| vanilla | 305.98 | 306 | +0.0 % |" in out
    assert "| FlowCache-fast | 113.60 | 28 |" in out


@pytest.mark.parametrize("points", [[], [EntryPoint("gone", "no_such_package:table", GROUP)]])
def test_without_models_the_error_says_what_to_do(points, monkeypatch, capsys):
    monkeypatch.setattr("flowcache.benchmark.paper_flops.entry_points", lambda group: points)
    assert program.main(["flops"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "install this project again" in error
