"""Programs of both models on tiny checkpoints with random weights."""

import numpy as np
import pytest
from programs import FOLDERS, Program

import magi1
import skyreels_v2
from flowcache.video import VideoWriter

#: Flags of a small video of SkyReels-V2.
QUICK = ("--height", 32, "--width", 32, "--num_frames", 9)
QUICK += ("--inference_steps", 4, "--ar_step", 1, "--causal_block_size", 2)


@pytest.fixture
def program(monkeypatch, tmp_path, weights, checkpoint):
    """Make the program ``program(model, command)``, with flags of a small video, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWCACHE_CACHE", str(tmp_path / "kept"))
    first = {"magi1": ("--config_file", weights, "--model", "official")}
    first["skyreels_v2"] = ("--model_id", checkpoint, *QUICK)

    def make(model, command="generate") -> Program:
        (path,) = FOLDERS[model].glob(f"{command}_video*.py")
        words = {"generate": ("--prompt", "a"), "sample": ("--gpus", "cpu")}[command]
        return Program(path, monkeypatch, (*first[model], *words))

    return make


@pytest.fixture
def magi(program):
    """The program for one video of MAGI-1."""
    return program("magi1")


@pytest.fixture
def skyreels(program):
    """The program for one video of SkyReels-V2."""
    return program("skyreels_v2")


@pytest.fixture
def unread(monkeypatch):
    """Fail where weights are read."""
    for model in FOLDERS:
        monkeypatch.setattr(f"{model}.adapter.load_pipeline", lambda *_, **__: pytest.fail("weights were read"))


@pytest.fixture(scope="session")
def pipelines(weights, checkpoint):
    """The loaded pipelines of both models."""
    magi = magi1.load_pipeline(magi1.resolve_model(weights, model="official"), "cpu")
    loaded = {"magi1": magi, "skyreels_v2": skyreels_v2.load_pipeline(str(checkpoint), "cpu")}
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def clip(tmp_path):
    """Flags of MAGI-1 that continue a video of seven seconds, each of another brightness."""
    with VideoWriter(tmp_path / "in.mp4", 8) as writer:
        for second in range(7):
            writer.write(np.full((8, 32, 32, 3), 30 * second, np.uint8))
    return ["--mode", "v2v", "--prefix_video_path", tmp_path / "in.mp4"]
