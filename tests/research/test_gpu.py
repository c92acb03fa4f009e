"""The checks for a GPU, reduced, on the CPU; and what becomes of checks that fail, crash or hang."""

import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from reference import ROOT

from research.gpu import bench as harness
from research.gpu import clock
from research.gpu.__main__ import make_parser, prepare
from research.gpu.bench import Bench, Failed, Section, Skipped, run_section
from research.gpu.report import write_report
from research.gpu.true_size import Timed

CPU = ("--device", "cpu", "--reduced", "--outdir")


def check(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLOWCACHE_NO_INSTALL": "1", "VIRTUAL_ENV": sys.prefix}
    command = ["bash", str(ROOT / "scripts" / "check_gpu.sh"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_all_sections_pass_on_a_cpu(tmp_path):
    done = check(*CPU, tmp_path)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads((tmp_path / "gpu.json").read_text())["outcomes"]
    skipped = {each["section"] for each in outcomes if each["result"] == "skipped"}
    assert skipped <= {"quantised", "compiled"}, "without torchao, and as compilers are slow"
    rows = {(each["section"], each["check"]): each["row"] for each in outcomes}
    assert {section for section, _ in rows} >= {"small", "kv_offload", "offload", "resume", "layers", "steps"}
    for (section, name), row in rows.items():
        if section == "small":
            assert row["latents, relative error"] == row["other decisions"] == 0, name
        if section == "layers":
            assert row["launches"] > 10 and row["floor, ms"] > 0
        if section == "steps" and not name.endswith("vanilla"):
            few_steps = name.startswith("self_forcing")
            assert row["FLOPs ratio"] > (1 if few_steps else 1.5) and row["speed-up"] > 0
            assert row["host waits"] <= (4 if few_steps else 1), "its step compresses the cache"
    page = (tmp_path / "gpu.md").read_text()
    assert "reduced" in page and "**fail**" not in page and "| SkyReels-V2, vanilla, fp32 | pass |" in page


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--device", "cpu"], "--reduced"), ([*CPU, "/proc/no"], "outdir"), (["--minutes", "0"], "minutes")],
)
def test_bad_input_is_refused_before_any_check(words, named):
    with pytest.raises(ValueError, match=named):
        prepare(make_parser().parse_args(words))


def many_ends(bench):
    def fail(row):
        row |= {"error": 0.5, "dB": math.nan}
        raise Failed("too far")

    def skip(row):
        raise Skipped("no card")

    yield "good", lambda row: "well done"
    yield "far", fail
    yield "raises", lambda row: 1 / 0
    yield "absent", skip
    yield "late", lambda row: time.sleep(max(0, bench.left))
    yield "too late", lambda row: None
    yield "crash", lambda row: None


def crashes(bench):
    yield "fine", lambda row: None
    yield "crash", lambda row: os._exit(9)


def hangs(bench):
    yield "endless", lambda row: time.sleep(1000)


@pytest.mark.parametrize(
    ("checks", "seconds", "expected"),
    [
        (many_ends, 1, ["pass", "fail", "fail", "skipped", "pass", "skipped", "skipped"]),
        (crashes, 60, ["pass", "fail"]),
        (hangs, 0.2, ["fail"]),
    ],
)
def test_no_check_ends_the_others(monkeypatch, tmp_path, checks, seconds, expected):
    monkeypatch.setattr(harness, "GRACE", 0.2)
    section = Section("some", "Some checks", "Of all kinds.", checks, 1)
    outcomes = list(run_section(section, Bench("cpu", True, time.time() + seconds)))
    assert [each.result for each in outcomes] == expected
    write_report(tmp_path / "gpu.md", tmp_path / "gpu.json", {"device": "a card"}, [section], outcomes)
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# Checks on a card\n") and f"{expected.count('fail')} failed" in page
    if checks is many_ends:
        assert "| far | **fail** | 0.5 | nan | too far |" in page and "ZeroDivisionError" in page
    if checks is crashes:
        assert "exit code 9" in page and outcomes[1].check == "crash"


def test_projection_scales_the_nearest_step_and_counts_reused_ones():
    timed = Timed(flops=[100.0, 0.0, 100.0, 50.0, 0.0], seconds=[1.0, 0.1, 3.0, 1.5, 0.3])
    assert timed.full_step == (100.0, 2.0) and timed.idle_seconds == pytest.approx(0.2)
    # two reused steps; 90 as 100 in proportion; 60 as 50
    assert timed.project([0.0, 0.0, 90.0, 60.0]) == pytest.approx(0.4 + 0.9 * 2.0 + 1.2 * 1.5)


class FakeEvent:
    """An event of CUDA; each is recorded a quarter of a second after the one before."""

    recorded = waited = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.recorded += 1
        self.place = FakeEvent.recorded

    def synchronize(self):
        FakeEvent.waited = max(FakeEvent.waited, self.place)

    def elapsed_time(self, later):
        assert FakeEvent.waited >= later.place
        return 250.0 * (later.place - self.place)


def test_cuda_is_timed_by_events_and_its_activity_counted(monkeypatch):
    bench = Bench("cuda", False, 0.0)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(Bench, "synchronize", lambda self: None)
    timer = clock.Clock(bench)
    for _ in range(3):
        timer.mark()
    assert FakeEvent.waited == 2, "one interval ahead"
    assert timer.intervals() == [0.25, 0.25]

    def event(name, kind, us=0):
        return SimpleNamespace(name=name, device_type=kind, time_range=SimpleNamespace(elapsed_us=lambda: us))

    host, device = clock.DeviceType.CPU, clock.DeviceType.CUDA
    events = [event("aten::mm", host), event("cudaLaunchKernel", host), event("cudaStreamSynchronize", host)]
    events += [event("gemm", device, 2000), event("softmax", device, 1000), event("Memset (Device)", device, 5)]
    events += [
        event("Memcpy HtoD (Pinned -> Device)", device, 4000),
        event("Memcpy DtoH (Device -> Pinned)", device, 7),
    ]
    profile = SimpleNamespace(start=lambda: None, stop=lambda: None, events=lambda: events)
    monkeypatch.setattr(clock, "profile", lambda activities: profile)
    recorder = clock.Recorder(bench)
    recorder.start()
    found = recorder.stop()
    assert (found.launches, found.waits) == (2, 1)
    assert (found.upload, found.download, found.busy) == pytest.approx((0.004, 7e-6, 0.003))
