"""Pictures of synthetic traces."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from flowcache import plots
from flowcache.plots import style
from flowcache.schedule import StaircaseSchedule
from flowcache.trace import ChunkEvent, Trace, WindowRecord

THRESHOLD = 0.15


def make_trace(chunks=5, num_steps=30, stride=10, windows=1, given=1, adaptive=True):
    """A run whose chunks change much at first and at last, as real ones do."""
    trace = Trace(method="flowcache", settings={"reuse": {"threshold": THRESHOLD}}, seconds={"denoise": 12.3})
    for window in range(windows):
        first = given if window else 0
        trace.begin_window(WindowRecord(num_steps, stride, first, [5] * chunks))
        accumulated = dict.fromkeys(range(chunks), 0.0)
        for step, live in enumerate(StaircaseSchedule(chunks, num_steps, stride, first)):
            events = [_event(c, k, num_steps, accumulated, adaptive) for c, k in live.items()]
            trace.add_step(step, events, 0.1, 100, {"actual": 3e13, "vanilla": 6e13})
    return trace


def _event(chunk, local_step, num_steps, accumulated, adaptive):
    if not adaptive or not 3 <= local_step < num_steps - 1:
        return ChunkEvent(chunk, local_step, reused=False)
    distance = (0.02 + 0.1 * (local_step / num_steps - 0.5) ** 2) * (1 + 0.05 * chunk)
    total = accumulated[chunk] + distance
    reused = total < THRESHOLD
    accumulated[chunk] = total if reused else 0.0
    return ChunkEvent(chunk, local_step, reused, distance, total)


def share(path, colour):
    """Share of a picture's pixels that have a colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = np.array([round(255 * part) for part in to_rgb(colour)])
    return (np.abs(pixels - wanted).max(axis=2) <= 2).mean()


@pytest.mark.parametrize(
    "shape",
    [
        {"windows": 2},
        {"chunks": 1, "stride": 0},
        {"chunks": 40, "num_steps": 64, "stride": 6},
        {"num_steps": 10, "stride": 5, "windows": 12, "given": 2},
    ],
)
@pytest.mark.parametrize("draw", [plots.reuse_map, plots.distance_curves])
def test_draws_runs_of_any_shape(tmp_path, draw, shape):
    draw(make_trace(**shape), tmp_path / "a.png")
    width, height = Image.open(tmp_path / "a.png").size
    assert 1000 <= width <= 2400
    assert 200 <= height <= 1600
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_distances_by_step_are_drawn_window_by_window(tmp_path):
    plots.step_distances(make_trace(windows=2), tmp_path / "two.png")
    plots.step_distances(make_trace(), tmp_path / "one.png")
    assert Image.open(tmp_path / "two.png").size[0] > Image.open(tmp_path / "one.png").size[0]


def test_map_shows_computed_and_reused_in_their_proportion(tmp_path):
    trace = make_trace(chunks=40, num_steps=64, stride=6)
    plots.reuse_map(trace, tmp_path / "a.png")
    reused, computed = share(tmp_path / "a.png", plots.REUSED), share(tmp_path / "a.png", plots.COMPUTED)
    assert reused / (reused + computed) == pytest.approx(trace.reuse_ratio, abs=0.03)


def test_map_of_a_plain_run_shows_no_reuse(tmp_path):
    plots.reuse_map(make_trace(adaptive=False), tmp_path / "a.png")
    assert share(tmp_path / "a.png", plots.COMPUTED) > 0.2
    assert share(tmp_path / "a.png", plots.REUSED) < 0.005  # the legend


def test_map_marks_given_chunks_only_where_there_are_any(tmp_path):
    plots.reuse_map(make_trace(windows=1), tmp_path / "none.png")
    plots.reuse_map(make_trace(windows=2), tmp_path / "some.png")
    assert share(tmp_path / "none.png", plots.GIVEN) < 0.001
    assert share(tmp_path / "some.png", plots.GIVEN) > 0.01


def test_map_keeps_the_place_of_steps_that_were_not_run(tmp_path):
    whole, stopped = make_trace(adaptive=False), make_trace(adaptive=False)
    del stopped.steps[20:]
    plots.reuse_map(whole, tmp_path / "whole.png")
    plots.reuse_map(stopped, tmp_path / "stopped.png")
    assert Image.open(tmp_path / "whole.png").size == Image.open(tmp_path / "stopped.png").size
    assert share(tmp_path / "stopped.png", plots.COMPUTED) < 0.4 * share(
        tmp_path / "whole.png", plots.COMPUTED
    )


def test_same_trace_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        plots.reuse_map(make_trace(windows=2), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_curves_do_without_a_threshold(tmp_path):
    for settings in ({}, {"reuse": None}, {"reuse": {}}):
        trace = make_trace()
        trace.settings = settings
        plots.distance_curves(trace, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_nothing_to_draw_is_refused(tmp_path):
    for draw in (plots.reuse_map, plots.distance_curves, plots.step_distances):
        with pytest.raises(ValueError, match="no window"):
            draw(Trace(), tmp_path / "a.png")
    with pytest.raises(ValueError, match="no distance"):
        plots.distance_curves(make_trace(adaptive=False), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_title_tells_what_is_known():
    trace = make_trace(chunks=1, num_steps=10, stride=0, adaptive=False)
    assert style.title_of(trace) == (
        "flowcache  ·  reuse ratio 0.00  ·  12.3 s denoising  ·  300 TFLOPs (2.00× fewer than vanilla)"
    )
    assert style.title_of(Trace()) == "run  ·  reuse ratio 0.00"
    assert style.title_of(Trace(flops={"actual": 2e12})) == "run  ·  reuse ratio 0.00  ·  2.00 TFLOPs"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.2, "59.2 s"), (60, "1 min 0 s"), (200.4, "3 min 20 s"), (7530, "2 h 5 min")],
)
def test_readable_time(seconds, text):
    assert style.readable_time(seconds) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [(5e7, "0.0500 GFLOPs"), (2.78e10, "27.8 GFLOPs"), (4.567e12, "4.57 TFLOPs"), (1.234e17, "123 PFLOPs")],
)
def test_readable_flops(flops, text):
    assert style.readable_flops(flops) == text


def _luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_colours_differ_in_lightness_and_stand_out_on_white():
    computed, reused = _luminance(plots.COMPUTED), _luminance(plots.REUSED)
    assert (reused + 0.05) / (computed + 0.05) > 3
    assert 1.05 / (reused + 0.05) > 2.7
