"""Training of the small checkpoints: short trainings that continue the shipped ones, and rounded weights."""

import json
import runpy
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from research.train_small.moving_shapes import ASSETS
from research.train_small.rounding import round_checkpoint, round_significant

WEIGHTS = {
    "magi": ("magi1_small", "inference_weight.distill/model.safetensors"),
    "skyreels": ("skyreels_v2_small", "transformer/diffusion_pytorch_model.safetensors"),
}


@pytest.mark.parametrize(("model", "numbers"), [("magi", ["--bfloat16"]), ("skyreels", [])])
def test_a_training_continues_a_checkpoint(monkeypatch, tmp_path, model, numbers):
    folder, weights = WEIGHTS[model]
    words = ["--start", ASSETS / folder, "--out", tmp_path, "--minutes", 0.01, "--batch", 1, *numbers]
    monkeypatch.setattr(sys, "argv", [model, *map(str, words), "--first-clips", "1", "--clips", "1"])
    monkeypatch.delitem(sys.modules, f"research.train_small.{model}", raising=False)
    runpy.run_module(f"research.train_small.{model}", run_name="__main__")
    losses, checkpoint = json.loads((tmp_path / "losses.json").read_text()), tmp_path / "checkpoint"
    assert losses and all(0 < loss < 1 for loss in losses)
    trained, shipped = load_file(checkpoint / weights), load_file(ASSETS / folder / weights)
    assert trained.keys() == shipped.keys()
    distances = [(trained[name].float() - shipped[name].float()).abs().max() for name in trained]
    assert 0 < max(distances) < 0.1  # no more than a few steps
    assert (checkpoint / "vae" / "config.json").is_file() and (checkpoint / "loss_curve.png").stat().st_size > 500
    record = json.loads((checkpoint / "training.json").read_text())
    assert record["transformer"]["minutes"] == 0.01
    assert record["start"] == json.loads((ASSETS / folder / "training.json").read_text())


def test_a_checkpoint_is_rounded(tmp_path):
    for part in ("transformer", "vae"):
        (tmp_path / "trained" / part).mkdir(parents=True)
        save_file({"weight": torch.tensor([1 + 1 / 256]).half()}, tmp_path / "trained" / part / "model.safetensors")
    (tmp_path / "trained" / "training.json").write_text('{"transformer": {"seed": 1}}')
    round_checkpoint(tmp_path / "trained", tmp_path / "rounded", bits=7)
    for part, value in (("transformer", 1), ("vae", 1 + 1 / 256)):
        assert load_file(tmp_path / "rounded" / part / "model.safetensors")["weight"].item() == value
    record = json.loads((tmp_path / "rounded" / "training.json").read_text())
    assert record["transformer"] == {"seed": 1, "significant_bits": 7}


def test_weights_are_rounded_to_significant_bits():
    values = torch.tensor([0.0, 1.0, -1.0, 1 + 1 / 128, 1 + 1 / 64, 1 + 3 / 128, 3e-3, -250.7])
    rounded = round_significant(values, 7)
    assert rounded[:6].tolist() == [0.0, 1.0, -1.0, 1.0, 1 + 1 / 64, 1 + 2 / 64] and rounded[-1] == -250
    assert ((rounded - values).abs() <= values.abs() / 128).all()
