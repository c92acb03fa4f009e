"""Several processes make the video of one, bit for bit."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import run_in_group
from parallel_videos import BY_FOUR, BY_THREE, CASES, PROCESSES, make_all

#: What is measured, and so differs from run to run.
MEASURED = ("seconds", "processor_seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folder with the videos of all cases."""
    folder = tmp_path_factory.mktemp("videos")
    run_in_group(folder / "said", partial(make_all, folder=folder), PROCESSES)
    return folder


def decided(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace without what is measured, and what windows' caches take by process."""
    steps = [{name: value for name, value in step.items() if name != "seconds"} for step in trace["steps"]]
    windows = [{name: value for name, value in w.items() if name != "kv_rank_bytes"} for w in trace["windows"]]
    rest = {name: value for name, value in trace.items() if name not in MEASURED}
    return rest | {"steps": steps, "windows": windows}


RUNS = [(name, 2) for name in CASES] + [(name, 3) for name in BY_THREE] + [(name, 4) for name in BY_FOUR]


@pytest.mark.parametrize(("name", "size"), RUNS)
def test_processes_make_the_video_of_one(made, name, size):
    alone, *shared = (
        torch.load(made / f"{name}.{count}.{index}.pt", weights_only=True)
        for count in (1, size)
        for index in range(count)
    )
    expected = json.loads(alone["trace"])
    assert alone["traffic"] == {"nbytes": 0, "collectives": 0}
    for own in shared:
        trace = json.loads(own["trace"])
        assert torch.equal(own["latents"], alone["latents"])
        assert decided(trace) == decided(expected)
        assert trace["peak_memory_bytes"] == json.loads(shared[0]["trace"])["peak_memory_bytes"]
        for window, whole in zip(trace["windows"], expected["windows"], strict=True):
            assert len(window["kv_rank_bytes"]) == size
            assert sum(window["kv_rank_bytes"]) == whole["kv_bytes"]
            assert max(window["kv_rank_bytes"]) < whole["kv_bytes"]
        assert own["traffic"]["nbytes"] > 0
