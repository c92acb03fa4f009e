"""Runs whose numbers are not finite end with a sentence and leave no video."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damaged import damaged, with_nan
from PIL import Image

from magi1 import model_source
from magi1.chunk_model import MagiChunkModel

FLAGS = ["--prompt", "a red circle", "--model", "official", "--output_path", "a.mp4", "--num_frames", 16]


def check_stopped(code: int, capsys, expected: str) -> None:
    """One sentence that names ``expected``, exit code 1, and no video."""
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    assert error.startswith("error: ") and expected in error
    assert all(path.stem.endswith(".part") for path in Path.cwd().glob("*.mp4"))


def folder_of(weights: Path, key: str) -> Path:
    """The folder that a configuration names."""
    return Path(json.loads(weights.read_text())["runtime_config"][key])


#: The part, a tensor of it, and what is noticed first.
DAMAGE = {
    "load": (
        "transformer",
        "layers.1.mlp.linear_fc1.weight",
        "latents of chunk 0 after its step 0",
    ),
    "t5_pretrained": ("text_encoder", "encoder.final_layer_norm.weight", "text embeddings"),
    "vae_pretrained": ("vae", "decoder.proj_in.weight", "frames from the VAE"),
}


@pytest.fixture
def unchecked(monkeypatch):
    """Weights are not checked when they are loaded."""
    monkeypatch.setattr(model_source, "check_finite_weights", lambda components: None)


@pytest.mark.parametrize("key", DAMAGE)
def test_damaged_weights_are_named(front, weights, tmp_path, capsys, key):
    part, tensor, _ = DAMAGE[key]
    copy = damaged(folder_of(weights, key), tmp_path / "copy", tensor, with_nan)
    check_stopped(front("--config_file", weights, f"--{key}", copy, *FLAGS), capsys, f"{part}: ")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("key", DAMAGE)
def test_what_they_give_is_noticed(front, weights, tmp_path, capsys, unchecked, key, resume):
    _, tensor, expected = DAMAGE[key]
    copy = damaged(folder_of(weights, key), tmp_path / "copy", tensor, with_nan)
    check_stopped(front("--config_file", weights, f"--{key}", copy, *FLAGS, *resume), capsys, expected)


def test_a_damaged_encoder_of_the_image(front, weights, tmp_path, capsys, unchecked):
    Image.new("RGB", (32, 32), "red").save("a.png")
    folder = folder_of(weights, "vae_pretrained")
    copy = damaged(folder, tmp_path / "copy", "encoder.patch_embed.proj.weight", with_nan)
    flags = ["--vae_pretrained", copy, "--mode", "i2v", "--image_path", "a.png"]
    check_stopped(front("--config_file", weights, *flags, *FLAGS), capsys, "latents of the given frames")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_model_that_breaks_at_its_fifth_call(front, weights, capsys, monkeypatch, resume):
    calls, plain = iter(range(5)), MagiChunkModel.head

    def head(model, inputs, outputs):
        velocities = plain(model, inputs, outputs)
        return [v * float("nan") for v in velocities] if next(calls, None) == 4 else velocities

    monkeypatch.setattr(MagiChunkModel, "head", head)
    code = front("--config_file", weights, "--method", "vanilla", *FLAGS, *resume)
    check_stopped(code, capsys, "after its step 4")
