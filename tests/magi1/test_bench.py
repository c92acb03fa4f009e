"""The ways that the benchmark of MAGI-1 takes."""

from __future__ import annotations

import pytest
from programs import load_script

from flowcache.config import PACES


@pytest.fixture
def bench(monkeypatch):
    return load_script("bench_magi", monkeypatch)


def test_ways(bench):
    for way in bench.WAYS:
        bench.cache_of(way)
    assert bench.cache_of("flowcache:quality").pace == PACES["quality"]
    paper = bench.cache_of("flowcache:paper-fast:0.1")
    assert (paper.threshold, paper.forecast) == (0.1, "hold_displacement")
    assert bench.cache_of("vanilla").policy == "none"


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("flowcache:0.1:papr", "threshold of at least 0, got 'papr'"),
        ("flowcache:0.1", "preset must be one of"),
        ("flowcache:papr", "preset must be one of"),
        ("flowcache:fast:abc", "ways must have a finite threshold of at least 0, got 'abc'"),
        ("flowcache:fast:nan", "ways must have a finite threshold"),
        ("flowcache:fast:0.1:more", "ways must be vanilla, or METHOD"),
        ("vanilla:fast", "ways must be vanilla, or METHOD"),
        ("vanila", "method must be one of"),
    ],
)
def test_wrong_ways_are_refused(bench, way, message):
    with pytest.raises(ValueError, match=message):
        bench.cache_of(way)


def test_bad_input_ends_in_one_sentence(bench, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_magi.py", "--device", "foo"])
    with pytest.raises(SystemExit) as stop:
        bench.main(bench.parse_arguments, bench.bench)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: device must be cpu or cuda, got 'foo'.\n"
