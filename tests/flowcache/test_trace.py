"""What is remembered of a run."""

import pytest

from flowcache.kv.quantized import QuantizationEvent
from flowcache.running import summary
from flowcache.trace import ChunkEvent, Trace, WindowRecord


def make_trace() -> Trace:
    trace = Trace(method="flowcache", settings={"reuse": {"threshold": 0.1}})
    trace.begin_window(WindowRecord(3, 1, 0, [5, 5], 100))
    flops = {"actual": 1.0, "vanilla": 4.0}
    trace.add_step(0, [ChunkEvent(0, 0, False)], 0.5, 10, flops)
    trace.add_step(1, [ChunkEvent(0, 1, True, 0.01, 0.02), ChunkEvent(1, 0, False)], 0.5, 20, flops)
    return trace


def test_round_trip(tmp_path):
    trace = make_trace()
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert trace.reuse_ratio == pytest.approx(1 / 3)
    assert trace.flops == {"actual": 2.0, "vanilla": 8.0}


def test_quantisations_come_back(tmp_path):
    trace = make_trace()
    events = [QuantizationEvent([0], 0.01, 0.02)]
    trace.add_step(2, [ChunkEvent(1, 1, False)], 0.5, 20, {"actual": 1.0}, quantizations=events)
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json").steps[2].quantizations == events


def test_summary_tells_what_compression_took():
    trace = make_trace()
    trace.seconds = {"denoise": 4.0}
    assert "5.0 s in all, 4.0 s denoising; reuse ratio 0.33" in summary(trace, 5.0)
    trace.add_seconds("compress", 0.1)
    assert "4.0 s denoising, 2.50% of that compressing the cache; " in summary(trace, 5.0)


def test_another_format_is_refused(tmp_path):
    (tmp_path / "trace.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 1"):
        Trace.load(tmp_path / "trace.json")


def test_timers_add_up():
    trace = Trace()
    for _ in range(2):
        with trace.timer("decode"):
            pass
    assert list(trace.seconds) == ["decode"]
    assert trace.seconds["decode"] > 0
