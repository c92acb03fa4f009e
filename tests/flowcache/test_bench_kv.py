"""What the benchmark of KV compression makes of its runs."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from programs import load_script

from flowcache.config import FlowCacheConfig, KVCompressionConfig, KVStorageConfig
from flowcache.trace import WindowRecord

CHUNKS = 11


@pytest.fixture
def script(monkeypatch):
    module = load_script("bench_kv", monkeypatch)
    FakeVideos.made = []
    monkeypatch.setitem(module.MODELS, "fake", FakeVideos)
    return module


class FakeVideos:
    """Grey videos, the further from those that keep everything, the less is kept; ``made`` counts them."""

    made: list[str]

    def __init__(self, chunks, steps, device):
        self.chunks = chunks

    def cache(self, preset, budget=None, bits=None):
        compression = None if budget is None else KVCompressionConfig(budget=budget)
        return FlowCacheConfig(compression=compression, storage=bits and KVStorageConfig(bits=bits))

    def stream(self, cache, trace):
        yield from range(self.chunks)

    def last_frames(self, cache, trace, prompt, seed):
        kept = cache.compression
        apart = 0 if kept is None else 0.1 / kept.budget + 0.02 * (kept.scorer == "paper")
        apart += 0.01 if cache.storage else 0
        trace.begin_window(WindowRecord(4, 1, 0, [1] * self.chunks, 2**20 * (kept.budget if kept else 10)))
        trace.seconds |= {"denoise": 2.0} | ({"compress": 0.1} if kept else {})
        self.made.append(prompt)
        return np.full((4, 16, 16, 3), round(255 * apart), np.uint8)


def bench(script, monkeypatch, outdir, captions=1):
    flags = ["--model", "fake", "--captions", str(captions), "--chunks", str(CHUNKS), "--outdir", str(outdir)]
    monkeypatch.setattr("sys.argv", ["bench_kv.py", *flags])
    return script.bench(script.parse_arguments())


def test_an_interrupted_measurement_goes_on(script, monkeypatch, tmp_path):
    text = bench(script, monkeypatch, tmp_path)
    variants = {variant for axis in script.AXES.values() for variant in axis}
    assert len(FakeVideos.made) == 2 * len(variants)
    runs = tmp_path / "runs.jsonl"
    runs.write_bytes(runs.read_bytes()[:-100])
    FakeVideos.made = []
    assert bench(script, monkeypatch, tmp_path) == text
    assert len(FakeVideos.made) == 2, "the one whose line was cut off, and what it is held against"
    assert bench(script, monkeypatch, tmp_path) == text
    assert len(FakeVideos.made) == 2, "nothing is left to do"


def test_what_is_written(script, monkeypatch, tmp_path):
    text = bench(script, monkeypatch, tmp_path, captions=2)
    # 14 of 255 grey levels
    assert "| 3 | 3.00 | 25.2 dB, " in text
    assert "| recency | 0 of 8 | -3.2 dB |" in text
    assert "The paper's score is not closer than each of the others in most runs." in text
    assert (tmp_path / "kv_fake.md").read_text().strip() == text
    rows = list(csv.DictReader((tmp_path / "kv_fake.csv").open()))
    kept = next(row for row in rows if row["budget"] == "3" and row["scorer"] == "random")
    assert (kept["captions"], kept["kv_bytes"], kept["compress"]) == ("2", str(3 * 2**20), "0.05")
    assert float(kept["psnr_least"]) == float(kept["psnr_most"]) == pytest.approx(float(kept["psnr"]))
    for name in ("kv_fake.json", "kv_fake.png", "fake_none_caption0.png", "fake_fast_caption1.png"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "6"], "error: steps must be a multiple of 4, got 6."),
        (["--chunks", "10"], "error: chunks must be more than 10, or the largest budget keeps all, got 10."),
        (["--captions", "99"], "error: captions must be at most 20, got 99."),
    ],
)
def test_bad_input_ends_in_one_sentence(script, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("sys.argv", ["bench_kv.py", "--model", "fake", *flags])
    with pytest.raises(SystemExit) as stop:
        script.main(script.parse_arguments, script.bench)
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == message
