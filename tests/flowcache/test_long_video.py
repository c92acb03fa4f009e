"""What the script on long videos makes of its measurements."""

from __future__ import annotations

import re

import pytest
from programs import load_script


@pytest.fixture
def script(monkeypatch):
    return load_script("long_video", monkeypatch)


def measurement(script, seconds, way="plain"):
    return script.Measurement(way, len(seconds) + 1, 100, 2**20, 2**29, seconds)


def test_slowdown_leaves_out_the_chunks_that_run_alone(script):
    steady = measurement(script, [1.0] * 36 + [0.1] * 3)
    assert steady.slowdown == 1.0
    assert measurement(script, [1 + i / 100 for i in range(103)]).slowdown == pytest.approx(1.945 / 1.045)
    assert measurement(script, [1.0] * 9).slowdown is None, "too few to tell"


def test_table_and_picture(script, tmp_path):
    runs = [measurement(script, [1.0] * n, way) for way in script.WAYS for n in (9, 39)]
    assert "| 40 | 100 | plain | 1.0 | 512 | 1.00 | 1.00 |" in script.summarise(runs).splitlines()
    script.draw(runs, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "6"], "error: steps must be a multiple of 4, got 6."),
        (["--chunks", "1"], "error: chunks must be at least 2, got 1."),
        (["--chunks", "1000000000"], "argument --chunks: .* 1000000000"),
        (["--outdir", "/proc/nowhere"], "outdir /proc/nowhere cannot be written"),
        (["--outdir", "~nosuch_user"], "argument --outdir: .*nosuch_user"),
    ],
)
def test_bad_input_ends_in_one_sentence(script, monkeypatch, capsys, flags, message):
    monkeypatch.setattr("sys.argv", ["long_video.py", *flags])
    with pytest.raises(SystemExit) as stop:
        script.main(script.parse_arguments, script.bench)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
