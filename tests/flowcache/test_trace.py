"""The record of a run."""

import pytest

from flowcache.kv.quantized import QuantizationEvent
from flowcache.trace import ChunkEvent, Trace, WindowRecord


def test_round_trip(tmp_path):
    trace = Trace(method="flowcache", settings={"reuse": {"threshold": 0.1}})
    trace.begin_window(WindowRecord(3, 1, 0, [5, 5], 100))
    flops = {"actual": 1.0, "vanilla": 4.0}
    trace.add_step(0, [ChunkEvent(0, 0, False)], 0.5, 10, flops)
    assert not trace.has_distances
    events = [ChunkEvent(0, 1, True, 0.01, 0.02), ChunkEvent(1, 0, False)]
    trace.add_step(1, events, 0.5, 20, flops, quantizations=[QuantizationEvent([0], 0.01, 0.02)])
    for _ in range(2):
        with trace.timer("decode"):
            pass
    assert trace.seconds["decode"] > 0
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json") == trace
    assert trace.reuse_ratio == pytest.approx(1 / 3)
    assert trace.flops == {"actual": 2.0, "vanilla": 8.0}
    assert trace.has_distances


@pytest.mark.parametrize("content", ['{"format": 0}', "[]", '{"format": 1, "steps": 3}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(ValueError, match=r"trace\.json"):
        Trace.load(tmp_path / "trace.json")
