"""Pictures of whole folders, and those of several runs."""

import numpy as np
import pytest
from PIL import Image
from synthetic_run import PROMPTS, SAMPLES, make_run, make_trace

from flowcache.benchmark import __main__ as program
from flowcache.benchmark.runs import find_model_runs
from flowcache.plots import Point, cache_over_time, race, tradeoff
from flowcache.plots.comparisons import pareto_front
from flowcache.plots.race import Runner, finished_parts, write_race
from flowcache.trace import Trace
from flowcache.video import read_video


@pytest.fixture(autouse=True)
def short_race(monkeypatch):
    """A race is over in half a second."""
    monkeypatch.setattr(race, "_SECONDS", (0.5, 0.5))


def test_a_run_of_several_methods_gives_all_pictures(tmp_path, capsys):
    make_run(tmp_path)
    find_model_runs(tmp_path)[0].measure("cpu")
    assert program.main(["plot", str(tmp_path), "--prompt", PROMPTS[1]]) == 0, capsys.readouterr().err
    names = {path.name for path in (tmp_path / "pictures" / "abacus").iterdir()}
    expected = {f"flowcache_paper-fast.{kind}.png" for kind in ("reuse", "distances", "by_step")}
    expected |= {"vanilla.reuse.png", "cache.png", "tradeoff.png", "frames.png", "race.mp4"}
    assert names == expected


def test_a_folder_of_single_runs_is_drawn_without_videos(tmp_path, capsys):
    for method in ("vanilla", "flowcache:paper-fast"):
        make_trace(method, 3.0, SAMPLES[0]).save(tmp_path / f"a_red_circle_{method[:4]}_seed0.trace.json")
    make_trace("vanilla", 3.0, SAMPLES[1]).save(tmp_path / "alone.trace.json")
    assert program.main(["plot", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_red_circle_vani_seed0.reuse.png", "alone.reuse.png", "cache.png"} <= names
    out = capsys.readouterr().out
    assert "no race.mp4: " in out and "no tradeoff.png: " in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run_dir: "),
        ({}, "has no *.trace.json"),
        ({"broken.trace.json": "{"}, "broken.trace.json cannot be read as a trace"),
        ({"a.trace.json": ""}, "prompt: expected one of a red circle"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, content, message, capsys):
    folder = tmp_path / "run"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            make_trace("vanilla", 1.0, SAMPLES[0]).save(folder / name)
            if text:
                (folder / name).write_text(text)
    assert program.main(["plot", str(folder), "--prompt", "a hat"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_viewer_plays_each_part_while_the_next_is_made():
    parts = finished_parts(make_trace("vanilla", 16.0, SAMPLES[0]))
    assert parts == [(8.0, pytest.approx(1 / 3)), (12.0, pytest.approx(2 / 3)), (16.0, 1.0)]
    with pytest.raises(ValueError, match="chunk"):
        finished_parts(Trace())
    runner = Runner("a", np.zeros((1, 2, 2, 3), np.uint8), [(8.0, 0.5), (12.0, 0.75), (16.0, 1.0)])
    assert [runner.position(time) for time in (7.9, 8, 10, 12, 16)] == [None, 0, 0.25, 0.5, 1]


def test_race_shows_the_fast_one_while_the_slow_one_computes(tmp_path):
    red, green = (np.full((6, 32, 48, 3), colour, np.uint8) for colour in ((220, 30, 30), (30, 220, 30)))
    runners = [Runner("slow", red, [(10.0, 1.0)]), Runner("fast", green, [(2.0, 0.5), (4.0, 1.0)])]
    write_race(runners, "a race", tmp_path / "race.mp4")
    frames, fps = read_video(tmp_path / "race.mp4")
    assert (fps, len(frames), len(list(tmp_path.iterdir()))) == (24, 13 + 6 + 24, 1)

    def shows(frame, channel):
        part = frame[64 + 46 : -30].astype(int)
        others = np.delete(part, channel, axis=-1).max(axis=-1)
        return (part[..., channel] - others > 100).mean() > 0.1

    shown = [(shows(frames[i], 0), shows(frames[i], 1)) for i in (1, 8, -1)]
    assert shown == [(False, False), (False, True), (True, True)]
    with pytest.raises(ValueError, match="at least one video"):
        write_race([], "a race", tmp_path / "none.mp4")


def test_tradeoff_and_cache_are_drawn_or_refused(tmp_path):
    points = [Point("a", 1, 30), Point("b", 2, 25), Point("c", 1.5, 24), Point("d", 3, 10), Point("e", 3, 9)]
    assert [point.label for point in pareto_front(points)] == ["a", "b", "d"]
    assert [point.label for point in pareto_front(points, less_is_better=True)] == ["e"]
    tradeoff({"PSNR": points, "LPIPS to vanilla": points}, "two", tmp_path / "a.png")
    cache_over_time({"a": make_trace("vanilla", 3.0, SAMPLES[0])}, tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").size[0] > Image.open(tmp_path / "b.png").size[0]
    for traces in ({}, {"a": Trace()}):
        with pytest.raises(ValueError):
            cache_over_time(traces, tmp_path / "c.png")
    with pytest.raises(ValueError):
        tradeoff({"PSNR": []}, "none", tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
