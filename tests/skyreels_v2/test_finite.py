"""Runs whose numbers are not finite end with an error that names the place, and leave no video."""

from pathlib import Path

import pytest
from tiny import with_nan

from flowcache.finite import NotFiniteError
from skyreels_v2 import checkpoint as loader
from skyreels_v2 import load_pipeline
from skyreels_v2.chunk_model import SkyReelsV2ChunkModel

FLAGS = ["--prompt", "a red circle", "--outdir", "out", "--height", 32, "--width", 32, "--num_frames", 17]
FLAGS += ["--inference_steps", 6, "--ar_step", 2, "--causal_block_size", 2]


def test_damaged_weights_are_named(checkpoint, tmp_path, monkeypatch):
    copy = str(with_nan(checkpoint, tmp_path / "copy", "encoder.final_layer_norm.weight"))
    with pytest.raises(NotFiniteError, match=r": [^ ]*encoder\.final_layer_norm.weight"):
        load_pipeline(copy, "cpu")
    monkeypatch.setattr(loader, "check_finite_weights", lambda components: None)
    with pytest.raises(NotFiniteError, match=r"^text embeddings"):
        load_pipeline(copy, "cpu")("a", height=32, width=32, num_frames=17, num_inference_steps=2)


def test_a_model_that_breaks_once(front, checkpoint, capsys, monkeypatch):
    """The run stops; started again, it continues from finite numbers."""
    flags = ["--model_id", checkpoint, *FLAGS, "--resume"]
    calls, plain = iter(range(6)), SkyReelsV2ChunkModel.head

    def head(model, inputs, outputs):
        velocities = plain(model, inputs, outputs)
        return [v * float("inf") for v in velocities] if next(calls, None) == 5 else velocities

    with monkeypatch.context() as patch:
        patch.setattr(SkyReelsV2ChunkModel, "head", head)
        assert front(*flags) == 1
    assert "latents of chunk" in capsys.readouterr().err.splitlines()[-1]
    assert all(path.stem.endswith(".part") for path in Path("out").rglob("*.mp4"))
    assert front(*flags) == 0
    assert front(*flags, "--outdir", "whole") == 0
    resumed, whole = (path.read_bytes() for name in ("out", "whole") for path in Path(name).rglob("*.mp4"))
    assert resumed == whole
