"""Runs whose numbers are not finite end with a sentence and leave no video."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaged import damaged, with_nan
from PIL import Image

from skyreels_v2 import checkpoint as loader
from skyreels_v2.chunk_model import SkyReelsV2ChunkModel

FLAGS = ["--prompt", "a red circle", "--outdir", "out", "--height", 32, "--width", 32, "--num_frames", 17]
FLAGS += ["--inference_steps", 6, "--ar_step", 2, "--causal_block_size", 2]


def check_stopped(code: int, capsys, expected: str) -> None:
    """One sentence that names ``expected``, exit code 1, and no video."""
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    assert error.startswith("error: ") and expected in error
    assert all(path.stem.endswith(".part") for path in Path("out").rglob("*.mp4"))


DAMAGE = {
    "blocks.1.ffn.net.2.weight": "latents of chunk 0 after its step 0",
    "encoder.final_layer_norm.weight": "text embeddings",
    "decoder.conv_out.bias": "frames from the VAE",
    "encoder.conv_in.bias": "latents of the given frames",
}


@pytest.mark.parametrize("tensor", DAMAGE)
def test_damaged_weights_are_named(front, checkpoint, tmp_path, capsys, tensor):
    copy = damaged(checkpoint, tmp_path / "copy", tensor, with_nan)
    check_stopped(front("--model_id", copy, *FLAGS), capsys, f": {tensor}")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("tensor", DAMAGE)
def test_what_they_give_is_noticed(front, checkpoint, tmp_path, capsys, monkeypatch, tensor, resume):
    monkeypatch.setattr(loader, "check_finite_weights", lambda components: None)
    copy, image = damaged(checkpoint, tmp_path / "copy", tensor, with_nan), []
    if "given" in DAMAGE[tensor]:
        Image.new("RGB", (32, 32), "red").save("a.png")
        image = ["--image", "a.png"]
    check_stopped(front("--model_id", copy, *FLAGS, *image, *resume), capsys, DAMAGE[tensor])


@pytest.mark.parametrize("method", ["vanilla", "causal", "flowcache"])
def test_a_model_that_breaks_once(front, checkpoint, capsys, monkeypatch, method):
    """The run stops; started again, it continues from numbers that are finite."""
    flags = ["--model_id", checkpoint, *FLAGS, "--method", method, "--resume"]
    calls, plain = iter(range(6)), SkyReelsV2ChunkModel.head

    def head(model, inputs, outputs):
        velocities = plain(model, inputs, outputs)
        return [v * float("inf") for v in velocities] if next(calls, None) == 5 else velocities

    with monkeypatch.context() as patch:
        patch.setattr(SkyReelsV2ChunkModel, "head", head)
        check_stopped(front(*flags), capsys, "latents of chunk")
    assert front(*flags) == 0
    (resumed,) = (path.read_bytes() for path in Path("out").rglob("*.mp4"))
    assert front(*flags, "--outdir", "whole") == 0
    (whole,) = (path.read_bytes() for path in Path("whole").rglob("*.mp4"))
    assert resumed == whole
