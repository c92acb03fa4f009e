"""The paper's PFLOPs beside ours."""

import tomllib
from importlib.metadata import EntryPoint

import pytest
from reference import ROOT

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.paper_flops import GROUP, PETA, PaperFlops, markdown, registered_models

TABLE = PaperFlops(
    model="a model",
    settings="small",
    stated={"vanilla": 100, "slow": 80, "fast": 50},
    counted={"everything": 100 * PETA, "live chunks": 80.2 * PETA},
)


@pytest.fixture
def declared():
    """Entry points of this project's metadata, whatever is installed."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    return [EntryPoint(name, value, GROUP) for name, value in points.items()]


def test_share_is_what_is_not_paid_for():
    assert TABLE.reused_share("fast", "everything") == pytest.approx(0.5)
    assert TABLE.reused_share("fast", "live chunks") == pytest.approx(1 - 50 / 80.2)
    assert TABLE.difference("slow") == pytest.approx(-0.2)


def test_who_costs_more_than_everything_that_ran_reused_no_share_of_it():
    assert TABLE.reused_share("vanilla", "live chunks") is None


def test_rounding_of_the_paper_makes_no_negative_share():
    table = PaperFlops("a", "b", {"vanilla": 100}, {"everything": 99.7 * PETA})
    assert table.reused_share("vanilla", "everything") == 0


def test_table_has_a_row_for_each_method():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "a model: small"
    assert lines[-1] == "| fast | 100.00 | 50 | -50.0 % | 0.50 | 0.38 |"
    assert lines[-3] == "| vanilla | 100.00 | 100 | +0.0 % | 0.00 |  |"


def test_both_models_are_registered_with_all_rows(declared):
    tables = registered_models(declared)
    assert [table.model for table in tables] == ["MAGI-1", "SkyReels-V2"]
    rows = {"vanilla", "TeaCache-slow", "TeaCache-fast", "FlowCache-slow", "FlowCache-fast"}
    assert all(table.stated.keys() == rows for table in tables)


def test_command_prints_both_tables(declared, monkeypatch, capsys):
    monkeypatch.setattr(
        "flowcache.benchmark.paper_flops.entry_points", lambda group: declared if group == GROUP else []
    )
    assert program.main(["flops"]) == 0
    out = capsys.readouterr().out
    assert "MAGI-1: 4.5B" in out and "SkyReels-V2: 1.3B" in out
    assert "| vanilla | 305.98 | 306 | +0.0 % |" in out
    assert "| FlowCache-fast | 113.60 | 28 |" in out


@pytest.mark.parametrize("points", [[], [EntryPoint("gone", "no_such_package:table", GROUP)]])
def test_without_models_the_error_says_what_to_do(points, monkeypatch, capsys):
    monkeypatch.setattr("flowcache.benchmark.paper_flops.entry_points", lambda group: points)
    assert program.main(["flops"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "install this project again" in error
    assert error.count("\n") == 1
