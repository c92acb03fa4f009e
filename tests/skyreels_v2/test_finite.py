"""Runs whose numbers are not finite end with an error that names the place, and leave no video."""

from pathlib import Path

import pytest
from damaged import damaged, with_nan
from PIL import Image

from flowcache.finite import NotFiniteError
from skyreels_v2 import checkpoint as loader
from skyreels_v2 import load_pipeline
from skyreels_v2.chunk_model import SkyReelsV2ChunkModel

CALL = {"height": 32, "width": 32, "num_frames": 17, "num_inference_steps": 6, "ar_step": 2}
FLAGS = ["--prompt", "a red circle", "--outdir", "out", "--height", 32, "--width", 32, "--num_frames", 17]
FLAGS += ["--inference_steps", 6, "--ar_step", 2, "--causal_block_size", 2]

DAMAGE = {
    "blocks.1.ffn.net.2.weight": "latents of chunk 0 after its step 0",
    "encoder.final_layer_norm.weight": "text embeddings",
    "decoder.conv_out.bias": "frames from the VAE",
    "encoder.conv_in.bias": "latents of the given frames",
}


@pytest.mark.parametrize("tensor", DAMAGE)
def test_damaged_weights_are_named(checkpoint, tmp_path, monkeypatch, tensor):
    copy = str(damaged(checkpoint, tmp_path / "copy", tensor, with_nan))
    with pytest.raises(NotFiniteError, match=f": [^ ]*{tensor}"):
        load_pipeline(copy, "cpu")
    monkeypatch.setattr(loader, "check_finite_weights", lambda components: None)
    pipeline, image = load_pipeline(copy, "cpu"), Image.new("RGB", (32, 32), "red")
    with pytest.raises(NotFiniteError, match=f"^{DAMAGE[tensor]}"):
        pipeline("a red circle", image=image if "given" in DAMAGE[tensor] else None, **CALL)


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
