"""Times, step sizes, staircase and ranges against the tables of the original."""

from __future__ import annotations

import pytest
from cases import magi_case

from flowcache import StaircaseSchedule
from magi1.chunk_model import KVRange
from magi1.schedule import Timetable


@pytest.fixture(scope="module")
def tables():
    return magi_case("schedule").info


def test_times(tables):
    for entry in tables["init_t"]:
        if entry["t_schedule_config"]:
            continue  # other curves, which no configuration file can ask for
        table = Timetable(entry["num_steps"], entry["shortcut_mode"] or "8,16,16")
        assert table.times.tolist() == pytest.approx(entry["t"], abs=1e-7)
        first = next(step for step in range(entry["num_steps"] + 1) if table.time(step) > 0.3)
        assert first == entry["first_index_above_threshold_0_3"]


def test_step_sizes(tables):
    for entry in tables["init_intervel"]:
        if (steps := entry["num_steps"]) % 4:
            continue
        table = Timetable(steps, entry["shortcut_mode"] or "8,16,16", distilled=True)
        for step, interval in enumerate(entry["interval"]):
            assert table.step_size(step) == (2 * 4 / interval if steps == 12 else 2 * steps / 4)


def test_staircase(tables):
    for entry in tables["get_timestep"]:
        steps, window = entry["num_steps"], entry["window_size"]
        table = Timetable(steps, entry["shortcut_mode"] or "8,16,16")
        schedule = StaircaseSchedule(entry["chunk_num"], steps, steps // window, entry["chunk_offset"])
        for row, live in zip(entry["rows"], schedule, strict=True):
            assert list(live) == list(range(*row["chunks"]))
            times = row["t"][-len(live) :]  # behind that of a clean chunk that runs once more
            assert [table.time(k) for k in live.values()] == pytest.approx(times, abs=1e-7)


def test_ranges(tables):
    for entry in tables["kv_range"]:
        ranges = KVRange(tuple(entry["noise2clean_kvrange"]), entry["clean_chunk_kvrange"])
        tokens = entry["tokens_per_chunk"]
        for call in entry["denoise"]:
            seen = zip(call["denoise_step_of_each_chunk"], call["kv_range"], strict=False)
            for local_step, (start, end) in seen:
                reach = ranges.reach(local_step, entry["num_steps"])
                assert start // tokens == (0 if reach is None else max(0, end // tokens - reach))
