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
IMAGE = ["--mode", "i2v", "--image_path", "a.png"]

#: Key of the folder, tensor, the part that is named, what is noticed where weights are not checked, flags.
DAMAGE = [
    ("load", "layers.1.mlp.linear_fc1.weight", "transformer: ", "latents of chunk 0 after its step 0", []),
    ("t5_pretrained", "encoder.final_layer_norm.weight", "text_encoder: ", "text embeddings", []),
    ("vae_pretrained", "decoder.proj_in.weight", "vae: ", "frames from the VAE", []),
    ("vae_pretrained", "encoder.patch_embed.proj.weight", "vae: ", "latents of the given frames", IMAGE),
]


@pytest.fixture
def stops(front, weights, capsys):
    """Run the program: one sentence, exit code 1, and no video."""

    def stops(expected: str, *flags) -> None:
        assert front("--config_file", weights, *FLAGS, *flags) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and expected in error
        assert all(path.stem.endswith(".part") for path in Path.cwd().glob("*.mp4"))

    return stops


@pytest.mark.parametrize(("key", "tensor", "part", "noticed", "flags"), DAMAGE)
def test_damaged_weights_are_named(stops, weights, tmp_path, monkeypatch, key, tensor, part, noticed, flags):
    folder = Path(json.loads(weights.read_text())["runtime_config"][key])
    copy = damaged(folder, tmp_path / "copy", tensor, with_nan)
    Image.new("RGB", (32, 32), "red").save("a.png")
    stops(part, f"--{key}", copy, *flags)
    monkeypatch.setattr(model_source, "check_finite_weights", lambda components: None)
    stops(noticed, f"--{key}", copy, *flags)
    stops(noticed, f"--{key}", copy, *flags, "--resume")


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_model_that_breaks_at_its_fifth_call(stops, monkeypatch, resume):
    calls, plain = iter(range(5)), MagiChunkModel.head

    def head(model, inputs, outputs):
        velocities = plain(model, inputs, outputs)
        return [v * float("nan") for v in velocities] if next(calls, None) == 4 else velocities

    monkeypatch.setattr(MagiChunkModel, "head", head)
    stops("after its step 4", "--method", "vanilla", *resume)
