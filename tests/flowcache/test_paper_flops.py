"""The paper's PFLOPs beside ours."""

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.paper_flops import PETA, PaperFlops, PaperRow

ROWS = {name: PaperRow(pflops, 1, 1, 1) for name, pflops in (("vanilla", 100), ("slow", 80), ("fast", 50))}


def test_a_share_is_what_the_row_does_not_pay_for():
    counted = {"everything": 100 * PETA, "live chunks": 80.2 * PETA}
    lines = PaperFlops("a model", "small", ROWS, counted).markdown().splitlines()
    assert lines[0] == "a model: small"
    assert lines[-1] == "| fast | 100.00 | 50 | -50.0 % | 0.50 | 0.38 |"
    assert lines[-3] == "| vanilla | 100.00 | 100 | +0.0 % | 0.00 |  |", "it costs more than live chunks"
    rounded = PaperFlops("a", "b", ROWS, {"everything": 99.7 * PETA})
    assert rounded.reused_share("vanilla", "everything") == 0, "the paper's figures are rounded"


def test_command_prints_the_tables_of_all_models(capsys):
    assert program.main(["flops"]) == 0
    text = capsys.readouterr().out
    assert all(row in text for row in ("| vanilla | 305.98 | 306 | +0.0 % |", "| FlowCache-fast | 113.60 | 28 |"))
