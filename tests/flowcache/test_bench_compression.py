"""The benchmark of compression at full size, at a size that takes no time."""

from __future__ import annotations

import json

import pytest
from programs import load_script


@pytest.fixture
def script(monkeypatch):
    module = load_script("bench_compression", monkeypatch)
    monkeypatch.setitem(module.SHAPES, "tiny", module.Shape(2, 2, 4, 2, 8, 30, 3, "chunk"))
    return module


def bench(script, monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["bench_compression.py", "--device", "cpu", *map(str, flags)])
    return script.bench(script.parse_arguments())


def test_all_queries_and_few_are_measured(script, monkeypatch, tmp_path):
    table = bench(
        script, monkeypatch, "--model", "tiny", "--repeats", 2, "--max_queries", 20, "--outdir", tmp_path
    )
    assert "s, 2 layers" in table
    record = json.loads((tmp_path / "tiny.json").read_text())
    assert [m["asked"] for m in record["measurements"]] == [90, 20]
    assert all(m["seconds"] > 0 for m in record["measurements"])
    assert (tmp_path / "tiny.md").read_text() == f"{table}\n"


def test_layers_can_be_fewer(script, monkeypatch, tmp_path):
    assert "s, 1 layers" in bench(script, monkeypatch, "--model", "tiny", "--layers", 1, "--outdir", tmp_path)


def test_one_chunk_is_refused(script, monkeypatch):
    with pytest.raises(ValueError, match="chunks must be at least 2, or all that is there goes, got 1"):
        bench(script, monkeypatch, "--chunks", 1)
