"""Pictures: of single traces, of several methods, and of whole folders."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image
from programs import assert_refused
from synthetic_run import PROMPTS, SAMPLES, make_run, make_trace

from flowcache import plots
from flowcache.benchmark import __main__ as program
from flowcache.benchmark.runs import find_model_runs
from flowcache.plots import Point, comparisons, race, style
from flowcache.trace import Trace
from flowcache.video import contact_sheet, read_image, read_video


def share(path, colour):
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = np.array([round(255 * part) for part in to_rgb(colour)])
    return (np.abs(pixels - wanted).max(axis=2) <= 2).mean()


@pytest.mark.parametrize("shape", [(1, 30, 0, 1), (40, 64, 6, 1), (5, 10, 5, 12)])
def test_draws_runs_of_any_number_of_chunks_steps_and_windows(tmp_path, shape):
    trace = make_trace("flowcache:paper-fast", 12.3, SAMPLES[0], *shape)
    for draw in (plots.reuse_map, plots.distance_curves, plots.step_distances):
        draw(trace, tmp_path / "a.png")
        width, height = Image.open(tmp_path / "a.png").size
        assert 1000 <= width <= 2400 and 200 <= height <= 1600
        with pytest.raises(ValueError, match="window"):
            draw(Trace(), tmp_path / "b.png")
    trace.settings = {"reuse": None}
    plots.distance_curves(trace, tmp_path / "a.png")
    with pytest.raises(ValueError, match="distance"):
        plots.distance_curves(make_trace("causal"), tmp_path / "b.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_map_shows_computed_reused_and_given(tmp_path):
    trace, stopped = make_trace("flowcache:paper-fast", chunks=40, num_steps=64, stride=6), make_trace("causal")
    del stopped.steps[2:]
    given = make_trace("causal", chunks=5, windows=2)
    runs = {"long": trace, "again": trace, "given": given, "stopped": stopped, "plain": make_trace("causal")}
    for name, run in runs.items():
        plots.reuse_map(run, tmp_path / name)
    assert (tmp_path / "long").read_bytes() == (tmp_path / "again").read_bytes()
    reused, computed = (share(tmp_path / "long", colour) for colour in (style.REUSED, style.COMPUTED))
    assert reused / (reused + computed) == pytest.approx(trace.reuse_ratio, abs=0.03)
    assert share(tmp_path / "long", style.GIVEN) < 0.001 and share(tmp_path / "given", style.GIVEN) > 0.01
    assert share(tmp_path / "plain", style.REUSED) < 0.005, "the legend's"
    assert Image.open(tmp_path / "plain").size == Image.open(tmp_path / "stopped").size
    assert share(tmp_path / "stopped", style.COMPUTED) < 0.4 * share(tmp_path / "plain", style.COMPUTED)


def test_title_names_preset_figures_and_units():
    trace = make_trace("causal", 12.3)
    trace.settings = {"preset": "fast", "reuse": {"policy": "interval", "interval": 5}}
    method, figures = style.run_title(trace).splitlines()
    assert method == "causal, fast, interval 5"
    assert figures == "reuse ratio 0.00  ·  12.3 s denoising  ·  2.00 PFLOPs (2.00x fewer than vanilla)"
    assert style.run_title(Trace(flops={"actual": 2e12})) == "run\nreuse ratio 0.00  ·  2.00 TFLOPs"
    times = {0.04: "0.0 s", 60: "1 min 0 s", 7530: "2 h 5 min"}
    assert {seconds: style.format_time(seconds) for seconds in times} == times
    flops = {0: "0 GFLOPs", 5e7: "0.0500 GFLOPs", 2.78e10: "27.8 GFLOPs", 1.234e17: "123 PFLOPs"}
    assert {number: style.format_flops(number) for number in flops} == flops
    savings = {0: "", 1.004e12: "same FLOPs as vanilla", 8e11: "1.25x more than vanilla"}
    assert {vanilla: style.format_saving(1e12, vanilla) for vanilla in savings} == savings


#: Points whose names leave little room, the second with a name that is free in a few places alone.
CROWDED = [
    {
        "vanilla": (1, 40),
        "TeaCache slow": (1.6, 34),
        "causal": (1.8, 33),
        "FlowCache quality": (2.6, 33),
        "FlowCache fast": (4, 28.5),
        "FlowCache turbo": (4.9, 25),
    },
    {
        "causal, no reuse": (1.47, 27.33),
        "TeaCache paper-slow": (3.61, 28.16),
        "TeaCache paper-fast": (4.32, 26.32),
        "FlowCache paper-slow": (3.76, 25.65),
        "FlowCache paper-fast": (4.38, 23.49),
        "FlowCache quality (ours)": (2.69, 27.43),
        "FlowCache balanced (ours)": (3.96, 27.82),
        "FlowCache fast (ours)": (6.41, 28.07),
        "FlowCache turbo (ours)": (7.63, 26.45),
    },
]


@pytest.mark.parametrize("crowded", CROWDED)
def test_labels_of_a_tradeoff_touch_neither_points_nor_front_nor_each_other(crowded, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(comparisons, "save_figure", lambda figure, path: figures.append(figure))
    points = [Point(label, *values) for label, values in crowded.items()]
    plots.tradeoff(dict.fromkeys(("PSNR", "SSIM", "ST", "to causal"), points), "title", tmp_path / "a.png")
    figures[0].draw_without_rendering()  # places the labels
    axis = figures[0].axes[0]
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    front = [axis.transData.transform(point[1:]) for point in comparisons.pareto_front(points)]
    line = np.concatenate([np.linspace(a, b, 99) for a, b in pairwise(front)])
    assert sorted(text.get_text() for text in axis.texts) == sorted(crowded)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.count_contains(np.concatenate([line, front])) for box in boxes)
    assert all(axis.get_window_extent().count_contains(box.corners()) == 4 for box in boxes)


def test_contact_sheet_shows_evenly_spaced_frames_and_difference_maps(tmp_path):
    frames = np.arange(0, 180, 20, np.uint8).repeat(16 * 24 * 3).reshape(9, 16, 24, 3)
    contact_sheet({"a": frames, "b": frames[:2]}, tmp_path / "sheet.png", columns=3, scale=1)
    sheet = read_image(tmp_path / "sheet.png")
    rows = [[sheet[top, 8 + column * 27 + 12, 0] for column in range(3)] for top in (32, 80)]
    assert rows == [[0, 80, 160], [0, 20, 255]]
    assert sheet.shape == (96, 2 * 8 + 3 * 27 - 3, 3)
    frames = np.full((2, 16, 24, 3), 100, np.uint8)
    videos = {"a": frames, "near": frames + np.uint8(3), "same": frames.copy(), "far": frames + np.uint8(90)}
    contact_sheet(videos, tmp_path / "sheet.png", scale=1, differences=True)
    sheet = read_image(tmp_path / "sheet.png")
    assert [int(pixel) for pixel in sheet[32::48, 20, 0]] == [100, 103, 3 * 64, 100, 0, 190]
    for nothing in ({}, {"a": frames[:0]}):
        with pytest.raises(ValueError, match="at least one"):
            contact_sheet(nothing, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_run_of_several_methods_gives_all_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(race, "_SECONDS", (0.5, 0.5))
    make_run(tmp_path / "abacus")
    find_model_runs(tmp_path)[0].measure("cpu")
    assert program.main(["plot", str(tmp_path), "--prompt", PROMPTS[1]]) == 0, capsys.readouterr().err
    names = {path.name for path in (tmp_path / "pictures" / "abacus").iterdir()}
    expected = {f"flowcache_paper-fast.{kind}.png" for kind in ("reuse", "distances", "by_step")}
    expected |= {"vanilla.reuse.png", "cache.png", "tradeoff.png", "frames.png", "race.mp4"}
    assert names == expected


def test_a_folder_of_single_runs_is_drawn_without_videos(tmp_path, capsys):
    for method in ("vanilla", "flowcache:paper-fast"):
        make_trace(method).save(tmp_path / f"a_red_circle_{method[:4]}_seed0.trace.json")
    make_trace("vanilla", sample=SAMPLES[1]).save(tmp_path / "alone.trace.json")
    assert program.main(["plot", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    out, names = capsys.readouterr().out, {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_red_circle_vani_seed0.reuse.png", "alone.reuse.png", "cache.png"} <= names
    assert "no race.mp4: " in out and "no tradeoff.png: " in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "run_dir: "),
        ("empty", "has no *.trace.json"),
        ("broken", "a.trace.json cannot be read as a trace"),
        ("whole", "prompt: expected one of a red circle"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, name, message, capsys):
    for folder in ("empty", "broken", "whole"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.trace.json").write_text("{")
    make_trace("vanilla").save(tmp_path / "whole" / "a.trace.json")
    assert_refused(program.main(["plot", str(tmp_path / name), "--prompt", "a hat"]), message, capsys)


def test_a_viewer_plays_each_part_while_the_next_is_made():
    parts = race.finished_parts(make_trace("vanilla"))
    assert parts == [(8.0, pytest.approx(1 / 3)), (12.0, pytest.approx(2 / 3)), (16.0, 1.0)]
    with pytest.raises(ValueError, match="chunk"):
        race.finished_parts(Trace())
    runner = race.Runner("a", np.zeros((1, 2, 2, 3), np.uint8), [(8.0, 0.5), (12.0, 0.75), (16.0, 1.0)])
    assert [runner.position(time) for time in (7.9, 8, 10, 12, 16)] == [None, 0, 0.25, 0.5, 1]


def test_race_shows_the_fast_one_while_the_slow_one_computes(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "_SECONDS", (0.5, 0.5))
    red, green = (np.full((6, 32, 48, 3), colour, np.uint8) for colour in ((220, 30, 30), (30, 220, 30)))
    runners = [race.Runner("slow", red, [(10.0, 1.0)]), race.Runner("fast", green, [(2.0, 0.5), (4.0, 1.0)])]
    race.write_race(runners, "a race", tmp_path / "race.mp4")
    frames, fps = read_video(tmp_path / "race.mp4")
    assert (fps, len(frames), len(list(tmp_path.iterdir()))) == (24, 13 + 6 + 24, 1)

    def shows(frame, channel):
        part = frame[64 + 46 : -30].astype(int)
        others = np.delete(part, channel, axis=-1).max(axis=-1)
        return (part[..., channel] - others > 100).mean() > 0.1

    shown = [(shows(frames[i], 0), shows(frames[i], 1)) for i in (1, 8, -1)]
    assert shown == [(False, False), (False, True), (True, True)]
    with pytest.raises(ValueError, match="at least one video"):
        race.write_race([], "a race", tmp_path / "none.mp4")


def test_tradeoff_and_cache_are_drawn_or_refused(tmp_path):
    points = [Point("a", 1, 30), Point("b", 2, 25), Point("c", 1.5, 24), Point("d", 3, 10), Point("e", 3, 9)]
    assert [point.label for point in comparisons.pareto_front(points)] == ["a", "b", "d"]
    assert [point.label for point in comparisons.pareto_front(points, less_is_better=True)] == ["e"]
    plots.tradeoff({"PSNR": points, "LPIPS to vanilla": points}, "two", tmp_path / "a.png")
    plots.cache_over_time({"a": make_trace("vanilla")}, tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").size[0] > Image.open(tmp_path / "b.png").size[0]
    for traces in ({}, {"a": Trace()}):
        with pytest.raises(ValueError):
            plots.cache_over_time(traces, tmp_path / "c.png")
    with pytest.raises(ValueError):
        plots.tradeoff({"PSNR": []}, "none", tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()
